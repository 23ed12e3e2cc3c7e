// Runs a CUDA kernel's body on the host, a fiber per CUDA thread, one block after the other.
//
// What it is strict about: dynamic shared memory is as long as the launch said and poisoned (NaN) before each block;
// __syncthreads and __syncwarp order memory for ThreadSanitizer, nothing else does; threads that meet at different
// barriers end the run. Blocks are whole warps, collectives are for all lanes. The last block runs first: none may
// need another. What it does not see: `__shared__` arrays keep what the block before left; races between blocks; and
// GCC's ThreadSanitizer overlooks a struct that a call reads from memory as its argument.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "threads.hpp"

#undef __shared__
#define __shared__ static
#define __launch_bounds__(...)

namespace host {

constexpr int LANES = 32, MAX_WARPS = 32, MAX_CLUSTER = 2;

inline Meeting block_meeting, warp_meetings[MAX_WARPS];
inline unsigned cluster;  // blocks in one
inline unsigned char* shared_bytes[MAX_CLUSTER];

inline int warp() { return (blockRank * blockDim.x + threadIdx.x) / LANES; }
inline int lane() { return threadIdx.x % LANES; }

// Ends the program where a kernel does what the hardware would not take.
inline void require(bool what, const char* otherwise) {
    if (what) return;
    std::fprintf(stderr, "%s\n", otherwise);
    std::_Exit(1);
}

}  // namespace host

inline void __syncthreads() { host::block_meeting.wait(blockDim.x, "__syncthreads", true); }
inline void __syncwarp() { host::warp_meetings[host::warp()].wait(host::LANES, "__syncwarp", true); }

template <class T> T* dynamic_shared() { return reinterpret_cast<T*>(host::shared_bytes[blockRank]); }

// Device functions of one thread that the host's headers lack.
using std::max;
using std::min;
inline float rsqrtf(float x) { return float(1.0 / std::sqrt(double(x))); }

#include "warp.hpp"

#include "mma.hpp"

namespace host {

// Runs `kernel()` as every thread of every block; `blocks` of them are a cluster.
template <class Kernel>
void launch(dim3 grid, unsigned threads, size_t dynamic_bytes, Kernel kernel, unsigned blocks = 1) {
    require(threads % LANES == 0 && threads * blocks <= LANES * MAX_WARPS, "a block is at most 32 whole warps");
    require(blocks <= MAX_CLUSTER && grid.x % blocks == 0, "a grid is whole clusters, of at most two blocks");
    gridDim = grid;
    blockDim = dim3(threads);
    cluster = blocks;
    constexpr size_t ALIGNED = 1024, OFF = 128;  // aligned as a launch promises, and no better
    void* bytes[MAX_CLUSTER];
    for (unsigned b = 0; b < blocks; ++b) {
        require(posix_memalign(&bytes[b], ALIGNED, OFF + dynamic_bytes) == 0, "no memory");
        shared_bytes[b] = static_cast<unsigned char*>(bytes[b]) + OFF;
    }
    for (unsigned block = grid.x * grid.y * grid.z; block > 0;) {
        block -= blocks;
        blockIdx = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
        for (unsigned b = 0; b < blocks; ++b) std::memset(shared_bytes[b], 0xff, dynamic_bytes);
        run_threads(threads * blocks, [](void* kernel) { (*static_cast<Kernel*>(kernel))(); }, &kernel);
        require_no_copies();
    }
    for (unsigned b = 0; b < blocks; ++b) std::free(bytes[b]);
}

}  // namespace host
