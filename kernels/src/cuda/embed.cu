// Embedding: out[i] = table[ids[i]], widened to f32, the type of the residual stream.
//
// table [V, d] T, ids [n], out [n, d] f32. Grid (n, blocks that share a row).
#include "common.cuh"

template <class T> __device__ void embed(const unsigned* ids, const T* table, float* out, int n, int d) {
    const int row = blockIdx.x;
    if (row >= n) return;
    const T* from = table + size_t(ids[row]) * d;
    float* to = out + size_t(row) * d;
    for_columns<PACK<T>>(d, [=](int column, auto width) {
        constexpr int W = decltype(width)::value;
        store(to + column, load<W>(from + column));
    });
}

KERNEL(embed, 256, (const unsigned* ids, const T* table, float* out, int n, int d), (ids, table, out, n, d))
