// The scalar head: out[i] = hidden[i] · weight + bias.
//
// hidden [n, d] T, weight [d] f32, out [n] f32. Grid (n), a block per row. The number of threads may depend on d, not
// on n: it decides the order of the sum.
#include "common.cuh"

template <class T>
__device__ void row_dot(const T* hidden, const float* weight, float bias, float* out, int n, int d) {
    const int row = blockIdx.x;
    if (row >= n) return;
    hidden += size_t(row) * d;
    float sum = 0.0f;
    for_columns<PACK<T>>(d, [&](int column, auto width) {
        constexpr int W = decltype(width)::value;
        const Floats<W> x = load<W>(hidden + column), w = load<W>(weight + column);
#pragma unroll
        for (int j = 0; j < W; ++j) sum += x.at[j] * w.at[j];
    });
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[row] = sum + bias;
}

KERNEL(row_dot, 256, (const T* hidden, const float* weight, float bias, float* out, int n, int d),
       (hidden, weight, bias, out, n, d))
