// RMSNorm (arXiv 1910.07467) of chosen rows: out[i] = x[r] / √(mean(x[r]²) + ε) · weight, r = rows[i], or i without
// rows.
//
// x [·, d] f32, weight [d] f32, out [n, d] T. Grid (n): a block reads its row twice, the second time from cache. The
// number of threads may depend on d, not on n: it decides the order of the sum.
#include "common.cuh"

template <class T>
__device__ void rms_norm(const float* x, const unsigned* rows, const float* weight, float eps, T* out, int n, int d) {
    const int row = blockIdx.x;
    if (row >= n) return;
    x += size_t(rows ? rows[row] : row) * d;
    out += size_t(row) * d;
    float squares = 0.0f;
    for_columns<PACK<float>>(d, [&](int column, auto width) {
        constexpr int W = decltype(width)::value;
        const Floats<W> v = load<W>(x + column);
#pragma unroll
        for (int j = 0; j < W; ++j) squares += v.at[j] * v.at[j];
    });
    const float scale = rsqrtf(block_sum(squares) / d + eps);
    for_columns<PACK<T>>(d, [=](int column, auto width) {
        constexpr int W = decltype(width)::value;
        Floats<W> v = load<W>(x + column);
        const Floats<W> w = load<W>(weight + column);
#pragma unroll
        for (int j = 0; j < W; ++j) v.at[j] *= scale * w.at[j];
        store(out + column, v);
    });
}

KERNEL(rms_norm, 256,
       (const float* x, const unsigned* rows, const float* weight, float eps, T* out, int n, int d),
       (x, rows, weight, eps, out, n, d))
