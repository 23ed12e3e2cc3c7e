// SwiGLU (arXiv 2002.05202): out = silu(gate) · up, silu(z) = z / (1 + e^−z).
//
// gate_up [n, 2m] T, a row's gates before its ups, out [n, m] T. Grid (n, blocks that share a row).
#include "common.cuh"

template <class T> __device__ void swiglu(const T* gate_up, T* out, int n, int m) {
    const int row = blockIdx.x;
    if (row >= n) return;
    const T *gates = gate_up + size_t(row) * 2 * m, *ups = gates + m;
    out += size_t(row) * m;
    for_columns<PACK<T>>(m, [=](int column, auto width) {
        constexpr int W = decltype(width)::value;
        const Floats<W> gate = load<W>(gates + column);
        Floats<W> up = load<W>(ups + column);
#pragma unroll
        for (int j = 0; j < W; ++j) up.at[j] *= gate.at[j] / (1.0f + expf(-gate.at[j]));
        store(out + column, up);
    });
}

KERNEL(swiglu, 256, (const T* gate_up, T* out, int n, int m), (gate_up, out, n, m))
