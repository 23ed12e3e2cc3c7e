// Form (a) of token_reward: the state of each row over the logits of some columns, merged into what it was.
//
// logits [n, ld] T, of which `columns` are there and stand for columns first_column.. of the vocabulary; states [n].
// A block a row, so that what the multiply left in L2 is read at once; 16 bytes a load where rows are aligned. Grid
// (n), any number of threads.
#include "row_state.cuh"

template <class T>
__device__ void logits_reduce(const T* logits, int ld, int first_column, int columns, const unsigned* targets,
                              RowState* states, int n) {
    constexpr int W = PACK<T>, GROUP = 16;  // logits of a load, and that a thread holds at once
    __shared__ Sums warps[WARP];
    const int threads = blockDim.x;
    const int row = blockIdx.x;
    if (row >= n) return;
    logits += size_t(row) * ld;

    Sums sums = NO_LOGITS;
    for (int base = 0; base < columns; base += threads * GROUP) {
        float z[GROUP];
#pragma unroll
        for (int pack = 0; pack < GROUP / W; ++pack) {
            const int column = base + (pack * threads + int(threadIdx.x)) * W;
            float* to = z + pack * W;
            if (ld % W == 0 && column + W <= columns) {
                const Floats<W> x = load<W>(logits + column);
#pragma unroll
                for (int j = 0; j < W; ++j) to[j] = x.at[j];
            } else {
#pragma unroll
                for (int j = 0; j < W; ++j) to[j] = column + j < columns ? to_float(logits[column + j]) : NEVER;
            }
        }
        sums = merge_sums(sums, summarize<GROUP, 1>([&](int i) { return z[i]; }));
    }

#pragma unroll
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        const Sums other{__shfl_down_sync(ALL_LANES, sums.max, lane), __shfl_down_sync(ALL_LANES, sums.sum, lane),
                         __shfl_down_sync(ALL_LANES, sums.moment, lane)};
        sums = merge_sums(sums, other);
    }
    if (lane_id() == 0) warps[warp_id()] = sums;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < threads / WARP; ++w) sums = merge_sums(sums, warps[w]);
    const unsigned target = targets[row] - first_column;
    const float logit = target < unsigned(columns) ? to_float(logits[target]) : NEVER;
    states[row] = merge(states[row], row_state(sums, logit));
}

KERNEL(logits_reduce, 256,
       (const T* logits, int ld, int first_column, int columns, const unsigned* targets, RowState* states, int n),
       (logits, ld, first_column, columns, targets, states, n))
