// What sm_90a has for a multiply: tiles copied by TMA, barriers in shared memory that count their bytes, multiplies
// of a warpgroup. Each function is one instruction of the PTX ISA, or two. The host's emulation brings its own.
//
// A tile is rows of 128 bytes, swizzled: the 16-byte chunk c of row r lies at chunk c ^ (r mod 8). TMA writes tiles
// so and wgmma reads them so (PTX ISA, "Swizzling modes", 128B), if they begin at a multiple of 1024 bytes.
#pragma once
#include <cuda.h>

#include "mma.cuh"

// The matrix descriptor of such a tile, K-major, at a shared address (PTX ISA, "Matrix descriptor format"). Bits
// 0-13: address / 16; 32-45: from 8 rows to the next 8, bytes / 16; 62-63: 1, this swizzle. Bits 16-29, the distance
// of columns of tiles, mean nothing here, as an instruction reads 32 of a row's 128 bytes; 1 by convention. The next
// 32 bytes of all rows are those of the descriptor + 2: the hardware swizzles the addresses that it computes.
__host__ __device__ constexpr unsigned long long descriptor(unsigned address) {
    constexpr unsigned long long eight_rows = 8 * 128 / 16, swizzle_128 = 1;
    return (address & 0x3ffff) >> 4 | 1ull << 16 | eight_rows << 32 | swizzle_128 << 62;
}

constexpr int WARPGROUP = 128;

// In shared memory: how many arrivals and bytes the phase still waits for.
using Barrier = unsigned long long;

// A place in a ring of stages that are filled and emptied; the parity of its barriers' phase tells one round from the
// next.
template <int STAGES> struct Place {
    unsigned index = 0, parity = 0;
    __device__ void advance() {
        index = (index + 1) % STAGES;
        parity ^= index == 0;
    }
};

#ifdef __CUDACC__

// --- The blocks of a cluster ---

__device__ inline unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ inline unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

// All threads of all blocks of the cluster.
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n"
                 "barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// --- Barriers ---

// A phase ends after `arrivals`, and after the bytes that were announced. Before the cluster's first use:
// cluster_sync.
__device__ inline void init(Barrier& barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n"
                 "fence.mbarrier_init.release.cluster;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Arrives and announces bytes.
__device__ inline void expect(Barrier& barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
                 : "memory");
}

// Arrives at the barrier of the same place in block `rank` of the cluster. No memory that this thread wrote is
// published by it, so that the scope is left as it is: a wider one would wait for all writes to the GPU's memory.
__device__ inline void arrive(Barrier& barrier, unsigned rank) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(shared_address(&barrier)), "r"(rank) : "memory");
}

// At a barrier of this block. It publishes what this thread wrote, and what others did that it has met since.
__device__ inline void arrive(Barrier& barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// Returns once the phase of this parity is over.
__device__ inline void wait(Barrier& barrier, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra again;\n"
                 "}" ::"r"(shared_address(&barrier)), "r"(parity) : "memory");
}

// Before an arrival that says that this thread's copies by cp.async are done: wgmma reads by another way.
__device__ inline void copies_are_seen() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --- TMA ---

// The box of the map at (column, row) into the same place of every block in `blocks`, a bit each; their barriers at
// the same place get its bytes. What lies outside the tensor is 0.
__device__ inline void load_box(void* to, const CUtensorMap& map, int column, int row, Barrier& barrier,
                                unsigned blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)), "l"(&map), "r"(column), "r"(row),
                 "r"(shared_address(&barrier)), "h"(static_cast<unsigned short>(blocks)) : "memory");
}

__device__ inline void prefetch(const CUtensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// --- Registers ---

// A warpgroup gives registers back, or waits until it has as many.
template <int COUNT> __device__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// --- Multiplies of a warpgroup ---

// The registers of a sum as operands: what multiplies still write is so neither read nor moved before it is said to
// be done.
#define SUM_4(j) "+f"(sum[j][0]), "+f"(sum[j][1]), "+f"(sum[j][2]), "+f"(sum[j][3])
#define SUM_16(j) SUM_4(j), SUM_4(j + 1), SUM_4(j + 2), SUM_4(j + 3)
#define SUM SUM_16(0), SUM_16(4), SUM_16(8), SUM_16(12), SUM_16(16), SUM_16(20), SUM_16(24), SUM_16(28)

// Before the first multiply, and where registers of the sum were touched since the last.
__device__ inline void wgmma_fence(float (&sum)[32][4]) {
    asm volatile("wgmma.fence.sync.aligned;" : SUM::"memory");
}

__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Returns when at most PENDING of the committed groups still run.
template <int PENDING> __device__ void wgmma_wait(float (&sum)[32][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %128;" : SUM : "n"(PENDING) : "memory");
}

#define WGMMA_M64N256K16(type)                                                                                       \
    asm volatile("{\n"                                                                                               \
                 ".reg .pred add;\n"                                                                                 \
                 "setp.ne.b32 add, %130, 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {"                                   \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                  \
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                  \
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                  \
                 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                  \
                 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                  \
                 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "      \
                 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
                 "%128, %129, add, 1, 1, 0, 0;\n"                                                                    \
                 "}"                                                                                                 \
                 : SUM                                                                                               \
                 : "l"(a), "l"(b), "r"(int(add)))

// sum [64, 256] = a [64, 16] · b [256, 16]ᵀ, plus what it was if `add`; a and b by their descriptors. The thread's
// part of the sum is as of mma.m16n8, 32 times, in the 16 rows that belong to its warp.
template <class T> __device__ void wgmma(float (&sum)[32][4], unsigned long long a, unsigned long long b, bool add);
template <>
__device__ inline void wgmma<__half>(float (&sum)[32][4], unsigned long long a, unsigned long long b, bool add) {
    WGMMA_M64N256K16("f16");
}
template <>
__device__ inline void wgmma<__nv_bfloat16>(float (&sum)[32][4], unsigned long long a, unsigned long long b,
                                             bool add) {
    WGMMA_M64N256K16("bf16");
}
#undef WGMMA_M64N256K16
#undef SUM

// --- The same with a left operand in registers and sums of 64 columns, several of them on their way at once ---

// The registers of a sum are neither read nor written across this. Before the fence that comes before the first
// multiply, and behind the wait for the last.
template <int N> __device__ void hold(float (&sum)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(sum[j][i])::"memory");
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

template <int PENDING> __device__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define WGMMA_M64N64K16(type)                                                                                        \
    asm volatile("{\n"                                                                                               \
                 ".reg .pred add;\n"                                                                                 \
                 "setp.ne.b32 add, %37, 0;\n"                                                                        \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                    \
                 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                            \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                 \
                 "{%32, %33, %34, %35}, %36, add, 1, 1, %38;\n"                                                      \
                 "}"                                                                                                 \
                 : SUM_16(0), SUM_16(4)                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(ROWS_OF_K)))

template <class T> constexpr bool IS_HALF = false;
template <> inline constexpr bool IS_HALF<__half> = true;

// sum [64, 64] = a [64, 16] · b, plus what it was if `add`. a is a warp's part of 16 rows each, as mma.m16n8k16 has
// it. b by its descriptor: [64, 16]ᵀ as above, or with ROWS_OF_K [16, 64], 16 whole rows of a tile.
template <class T, bool ROWS_OF_K>
__device__ void wgmma_m64n64k16(float (&sum)[8][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    if constexpr (IS_HALF<T>) {
        WGMMA_M64N64K16("f16");
    } else {
        WGMMA_M64N64K16("bf16");
    }
}
#undef WGMMA_M64N64K16
#undef SUM_16
#undef SUM_4

#endif
