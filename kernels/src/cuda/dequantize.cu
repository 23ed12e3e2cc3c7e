// int8 weights with one scale a row to T: out[r] = weight[r] · scale[r].
//
// weight [rows, k] int8, scale [rows] f32, out [rows, k] f16 or bf16. Grid (rows, blocks that share a row).
#include "common.cuh"

template <class T>
__device__ void dequantize(const signed char* weight, const float* scale, T* out, int rows, int k) {
    const int row = blockIdx.x;
    if (row >= rows) return;
    weight += size_t(row) * k;
    out += size_t(row) * k;
    const float by = scale[row];
    for_columns<PACK<signed char>>(k, [=](int column, auto width) {
        constexpr int W = decltype(width)::value;
        Floats<W> x = load<W>(weight + column);
#pragma unroll
        for (int j = 0; j < W; ++j) x.at[j] *= by;
        store(out + column, x);
    });
}

KERNEL_16_BIT(dequantize, 256, (const signed char* weight, const float* scale, T* out, int rows, int k),
              (weight, scale, out, rows, k))
