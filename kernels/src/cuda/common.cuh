// What the kernels share: T and f32, reads and writes of several elements at once, sums over warps and blocks, and
// the symbols NAME_f32, NAME_f16 and NAME_bf16 of a kernel written once for all T.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// --- Symbols ---

// An `extern "C"` kernel NAME_SUFFIX within launch bounds, which calls the template NAME<T>. T stands for the type in
// `parameters` as well.
#define KERNEL_OF(suffix, type, name, bounds, parameters, arguments)                                                 \
    namespace suffix {                                                                                               \
    using T = type;                                                                                                  \
    extern "C" __global__ void __launch_bounds__ bounds name##_##suffix parameters { name<T> arguments; }            \
    }
#define KERNEL_16_BIT_WITHIN(name, bounds, parameters, arguments)                                                    \
    KERNEL_OF(f16, __half, name, bounds, parameters, arguments)                                                      \
    KERNEL_OF(bf16, __nv_bfloat16, name, bounds, parameters, arguments)
#define KERNEL_16_BIT(name, threads, parameters, arguments)                                                          \
    KERNEL_16_BIT_WITHIN(name, (threads), parameters, arguments)
#define KERNEL(name, threads, parameters, arguments)                                                                 \
    KERNEL_OF(f32, float, name, (threads), parameters, arguments)                                                    \
    KERNEL_16_BIT(name, threads, parameters, arguments)

// --- T and f32 ---

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(signed char x) { return x; }

template <class T> __device__ T from_float(float x);
template <> __device__ inline float from_float(float x) { return x; }
template <> __device__ inline __half from_float(float x) { return __float2half_rn(x); }
template <> __device__ inline __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }

// --- Several elements at once ---

template <int W> struct Floats {
    float at[W];
};

// W neighbours, moved by accesses of 16 bytes where they fill them.
template <class T, int W> struct alignas(W * sizeof(T) < 16 ? W * sizeof(T) : 16) Pack {
    T at[W];
};

// How many T fill 16 bytes.
template <class T> constexpr int PACK = 16 / sizeof(T);

template <int W, class T> __device__ Floats<W> load(const T* from) {
    const Pack<T, W> pack = *reinterpret_cast<const Pack<T, W>*>(from);
    Floats<W> x;
#pragma unroll
    for (int j = 0; j < W; ++j) x.at[j] = to_float(pack.at[j]);
    return x;
}

template <int W, class T> __device__ void store(T* to, const Floats<W>& x) {
    Pack<T, W> pack;
#pragma unroll
    for (int j = 0; j < W; ++j) pack.at[j] = from_float<T>(x.at[j]);
    *reinterpret_cast<Pack<T, W>*>(to) = pack;
}

template <int W, class T> __device__ void copy(T* to, const T* from) {
    *reinterpret_cast<Pack<T, W>*>(to) = *reinterpret_cast<const Pack<T, W>*>(from);
}

template <int W> struct Width {
    static constexpr int value = W;
};

// Deals the columns of a row over the threads of a block, and over gridDim.y blocks. `each(column, Width<W>)` handles
// W of them where W divides the length and `stride`, what else lies between the starts of rows: then every row is
// aligned as the first one is. Otherwise it handles one.
template <int W, class Each> __device__ void for_columns(int length, Each each, int stride = 0) {
    const int first = blockIdx.y * blockDim.x + threadIdx.x, step = gridDim.y * blockDim.x;
    if (length % W == 0 && stride % W == 0) {
        for (int i = first; i < length / W; i += step) each(i * W, Width<W>{});
    } else {
        for (int i = first; i < length; i += step) each(i, Width<1>{});
    }
}

// 2^x for x up to about 0, 0 where that is below the smallest normal number. One instruction.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x));
    return e;
#else
    const float e = exp2f(x);
    return e < 0x1p-126f ? 0.0f : e;
#endif
}

// --- Warps and blocks ---

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline int lane_id() { return threadIdx.x % WARP; }
__device__ inline int warp_id() { return threadIdx.x / WARP; }

// Every lane gets the same bits: each step adds the same two numbers in both partners.
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(ALL_LANES, x, offset);
    return x;
}

__device__ inline float warp_max(float x) {
#pragma unroll
    for (int offset = WARP / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
    return x;
}

// The sum over a block, in an order that depends on its size alone; every thread gets it.
__device__ inline float block_sum(float x) {
    __shared__ float sums[WARP];
    x = warp_sum(x);
    if (lane_id() == 0) sums[warp_id()] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < int(blockDim.x) / WARP; ++w) sum += sums[w];
    __syncthreads();  // before the next call writes
    return sum;
}

// The shared memory whose size the launch says. The host's emulation brings its own.
#ifdef __CUDACC__
template <class T> __device__ T* dynamic_shared() {
    extern __shared__ __align__(128) unsigned char bytes[];
    return reinterpret_cast<T*>(bytes);
}
#endif
