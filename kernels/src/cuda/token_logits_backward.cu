// The way back of token_logits through a chunk of the vocabulary: logits become their gradients, in place.
//
// With p = e^(z − logsumexp), entropy H and the gradients g of a row's logit, logsumexp and entropy:
// dz = g_logit · [column is the target] + (g_logsumexp − g_entropy · (ln p + H)) · p.
//
// logits [n, ld] T, of which `columns` are used: those of the vocabulary from first_column; g [n, 3] f32, the rest
// [n]. Grid (n, blocks that share a row).
#include "common.cuh"

template <class T>
__device__ void token_logits_backward(T* logits, int ld, int first_column, int columns, const unsigned* targets,
                                      const float* logsumexp, const float* entropy, const float* g, int n) {
    const int row = blockIdx.x;
    if (row >= n) return;
    logits += size_t(row) * ld;
    const int target = int(targets[row]) - first_column;
    const float log_sum = logsumexp[row], h = entropy[row];
    const float g_logit = g[3 * row], g_log_sum = g[3 * row + 1], g_entropy = g[3 * row + 2];
    for_columns<PACK<T>>(columns, [=](int column, auto width) {
        constexpr int W = decltype(width)::value;
        Floats<W> z = load<W>(logits + column);
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const float log_p = z.at[j] - log_sum, p = expf(log_p);
            z.at[j] = p > 0.0f ? (g_log_sum - g_entropy * (log_p + h)) * p : 0.0f;  // ln p may be −∞ where p is 0
            if (column + j == target) z.at[j] += g_logit;
        }
        store(logits + column, z);
    }, ld);
}

KERNEL(token_logits_backward, 256,
       (T* logits, int ld, int first_column, int columns, const unsigned* targets, const float* logsumexp,
        const float* entropy, const float* g, int n),
       (logits, ld, first_column, columns, targets, logsumexp, entropy, g, n))
