// The end of token_reward: the states of a row's parts of the vocabulary, merged in ascending order, and what they
// say.
//
// logit = the target's; logsumexp = max + ln Σ, never below max; entropy = ln Σ − moment / Σ, never below 0. In f64.
// partials [splits, n], out [4, n] f32: logit, logsumexp, max, entropy. A thread a row; grid (rows / threads, rounded
// up).
#include "row_state.cuh"

extern "C" __global__ void __launch_bounds__(256)
    token_reward_merge(const RowState* partials, int splits, float* out, int n) {
    const int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= n) return;
    RowState state = partials[row];
    for (int split = 1; split < splits; ++split) state = merge(state, partials[size_t(split) * n + row]);
    const double log_sum = log(state.sum);
    out[row] = state.target;
    out[size_t(n) + row] = at_least(state.max, float(state.max + log_sum));
    out[2 * size_t(n) + row] = state.max;
    out[3 * size_t(n) + row] = at_least(0.0f, float(log_sum - state.moment / state.sum));
}
