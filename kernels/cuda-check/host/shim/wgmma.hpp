// The instructions of kernels/src/cuda/wgmma.cuh on the host, with the layouts that the PTX ISA documents.
//
// Multiplies are as late as the hardware may be: they read shared memory and write their sums when the thread waits
// for them, and until then the sums are poison (NaN).
#pragma once
#include <cuda.h>

#include <array>
#include <cstdint>
#include <vector>

#include "cuda.hpp"
#include "mbarrier.hpp"

#undef __grid_constant__
#define __grid_constant__

namespace host {

// What a kernel finds in a CUtensorMap: a matrix of 2-byte elements, copied in boxes of 64 columns, swizzled.
struct Tensor {
    const unsigned char* base;
    int rows, columns, box_rows;
};

inline CUtensorMap tensor_map(const void* base, int rows, int columns, int box_rows) {
    require(columns % 8 == 0 && reinterpret_cast<uintptr_t>(base) % 16 == 0, "TMA: rows are aligned to 16 bytes");
    const Tensor tensor{static_cast<const unsigned char*>(base), rows, columns, box_rows};
    CUtensorMap map{};
    std::memcpy(&map, &tensor, sizeof(tensor));
    return map;
}

// Where this block's shared memory begins as an address of it; addresses are as well aligned as pointers are.
inline unsigned char* shared_origin() {
    return shared_bytes[blockRank] - reinterpret_cast<uintptr_t>(shared_bytes[blockRank]) % 1024;
}

// The same place in another block of the cluster.
template <class V> V* in_block(V* here, unsigned other) {
    const auto offset = reinterpret_cast<unsigned char*>(here) - shared_bytes[blockRank];
    return reinterpret_cast<V*>(shared_bytes[other] + offset);
}

// A read, for ThreadSanitizer: it is a race unless the barrier's init came before.
inline void require_set(const volatile unsigned long long& barrier) { static_cast<void>(barrier + 0); }

// Row `row` of a matrix in shared memory, 16 elements from where the descriptor points: chunk by chunk, each at the
// computed address with its bits 4-6 mixed with bits 7-9.
template <class T> std::array<double, 16> described_row(unsigned long long descriptor, int row) {
    require(descriptor >> 62 == 1, "wgmma: a descriptor without 128-byte swizzle");
    const unsigned start = (descriptor & 0x3fff) * 16, eight_rows = (descriptor >> 32 & 0x3fff) * 16;
    std::array<double, 16> out;
    for (int chunk = 0; chunk < 2; ++chunk) {
        const unsigned address = start + row / 8 * eight_rows + row % 8 * 128 + chunk * 16;
        T elements[8];
        std::memcpy(elements, shared_origin() + (address ^ (address >> 7 & 7) << 4), 16);
        for (int i = 0; i < 8; ++i) out[chunk * 8 + i] = float(elements[i]);
    }
    return out;
}

// The same matrix with its rows along K: element (k, column) of 16 whole rows.
template <class T> double described_column(unsigned long long descriptor, int k, int column) {
    require(descriptor >> 62 == 1, "wgmma: a descriptor without 128-byte swizzle");
    const unsigned start = (descriptor & 0x3fff) * 16, eight_rows = (descriptor >> 32 & 0x3fff) * 16;
    const unsigned address = start + k / 8 * eight_rows + k % 8 * 128 + column * 2;
    T element;
    std::memcpy(&element, shared_origin() + (address ^ (address >> 7 & 7) << 4), 2);
    return float(element);
}

// A thread's multiplies whose left operand is in registers, oldest first, and what their sums will be.
struct RegisterMultiplies {
    struct Sum {
        float (*at)[4];
        float values[8][4];
        int pending;
    };
    struct Multiply {
        float (*at)[4];
        double a[2][16];
        unsigned long long b;
        bool add;
        int group;
        double (*element)(unsigned long long b, int k, int column);
    };
    std::vector<Sum> sums;
    std::vector<Multiply> pending;

    Sum& sum_at(float (*at)[4]) {
        for (Sum& sum : sums)
            if (sum.at == at) return sum;
        sums.push_back({at, {}, 0});
        std::memcpy(sums.back().values, at, sizeof(Sum::values));
        std::memset(at, 0xff, sizeof(Sum::values));
        return sums.back();
    }

    void push(const Multiply& m) {
        ++sum_at(m.at).pending;
        pending.push_back(m);
    }

    // Those of groups below `end`.
    void finish(int end) {
        size_t done = 0;
        for (; done < pending.size() && pending[done].group < end; ++done) {
            const Multiply& m = pending[done];
            Sum& sum = sum_at(m.at);
            for (int i = 0; i < 16; ++i) {
                const int j = i / 2, c = i % 2, column = 8 * j + lane() % 4 * 2 + c;
                double x[2] = {m.add ? sum.values[j][c] : 0.0f, m.add ? sum.values[j][2 + c] : 0.0f};
                for (int k = 0; k < 16; ++k) {
                    const double b = m.element(m.b, k, column);
                    for (int half = 0; half < 2; ++half) x[half] += m.a[half][k] * b;
                }
                for (int half = 0; half < 2; ++half) sum.values[j][2 * half + c] = float(x[half]);
            }
            if (--sum.pending == 0) {
                std::memcpy(sum.at, sum.values, sizeof(sum.values));
                sums.erase(sums.begin() + (&sum - sums.data()));
            }
        }
        pending.erase(pending.begin(), pending.begin() + done);
    }
};

// A thread's multiplies on their way, oldest first, and what its sum will be.
struct Multiplies {
    RegisterMultiplies of_registers;
    struct Multiply {
        unsigned long long a, b;
        bool add;
        int group;
        void (*run)(float (&)[32][4], const Multiply&);
    };
    std::vector<Multiply> pending;
    int groups = 0;
    bool fenced = false;
    float sum[32][4];

    template <class T> static void run(float (&sum)[32][4], const Multiply& m) {
        const int first = warp() % 4 * 16 + lane() / 4;
        const std::array<double, 16> a[2] = {described_row<T>(m.a, first), described_row<T>(m.a, first + 8)};
        for (int column = 0; column < 64; ++column) {
            const int j = column / 2, k = column % 2;
            const auto b = described_row<T>(m.b, 8 * j + lane() % 4 * 2 + k);
            for (int half = 0; half < 2; ++half) {
                double x = m.add ? sum[j][2 * half + k] : 0;
                for (int i = 0; i < 16; ++i) x += a[half][i] * b[i];
                sum[j][2 * half + k] = float(x);
            }
        }
    }

    void finish(int groups_left, float (&out)[32][4]) {
        size_t done = 0;
        for (; done < pending.size() && pending[done].group < groups - groups_left; ++done) {
            pending[done].run(sum, pending[done]);
        }
        pending.erase(pending.begin(), pending.begin() + done);
        if (!pending.empty()) return;
        std::memcpy(out, sum, sizeof(sum));
        fenced = false;
    }
};
inline Multiplies multiplies[LANES * MAX_WARPS];

inline Multiplies& mine() { return multiplies[blockRank * blockDim.x + threadIdx.x]; }

}  // namespace host

inline unsigned shared_address(const void* p) { return static_cast<const unsigned char*>(p) - host::shared_origin(); }

inline unsigned cluster_rank() { return blockRank; }
inline unsigned cluster_size() { return host::cluster; }
inline void cluster_sync() { 
    host::block_meeting.wait(blockDim.x * host::cluster, "barrier.cluster", true);
}

inline void init(unsigned long long& barrier, int arrivals) {
    barrier = 0;  // a write that a sanitizer sees
    host::barrier_set(&barrier, arrivals);
}

inline void expect(unsigned long long& barrier, int bytes) {
    host::require_set(barrier);
    host::barrier_move(&barrier, 1, bytes);
}

inline void arrive(unsigned long long& barrier, unsigned rank) {
    auto* there = host::in_block(&barrier, rank);
    host::require_set(*there);
    host::barrier_move(there, 1, 0);
}

inline void arrive(unsigned long long& barrier) {
    host::require_set(barrier);
    host::require(host::copies[threadIdx.x].seen, "cp.async: announced without a proxy fence");
    host::barrier_move(&barrier, 1, 0);
}

inline void copies_are_seen() { host::copies[threadIdx.x].seen = true; }

inline void wait(unsigned long long& barrier, unsigned parity) {
    host::require_set(barrier);
    host::barrier_wait(&barrier, parity);
}

inline void load_box(void* to, const CUtensorMap& map, int column, int row, unsigned long long& barrier,
                     unsigned blocks) {
    host::Tensor tensor;
    std::memcpy(&tensor, &map, sizeof(tensor));
    host::require(shared_address(to) % 1024 == 0, "TMA: a tile that is not aligned to 1024 bytes");
    for (unsigned block = 0; block < host::cluster; ++block) {
        if ((blocks >> block & 1) == 0) continue;
        auto* tile = host::in_block(static_cast<unsigned char*>(to), block);
        for (int i = 0; i < tensor.box_rows * 8; ++i) {
            const int r = i / 8, chunk = i % 8, c = column + chunk * 8;
            unsigned char* at = tile + r * 128 + (chunk ^ r % 8) * 16;
            const bool inside = row + r < tensor.rows && c < tensor.columns;
            if (inside) std::memcpy(at, tensor.base + 2 * (size_t(row + r) * tensor.columns + c), 16);
            else std::memset(at, 0, 16);
        }
        host::barrier_move(host::in_block(&barrier, block), 0, -tensor.box_rows * 128);
    }
}

inline void prefetch(const CUtensorMap&) {}
template <int COUNT> void fewer_registers() {}
template <int COUNT> void more_registers() {}

inline void wgmma_fence(float (&)[32][4]) { host::mine().fenced = true; }
inline void wgmma_commit() { ++host::mine().groups; }
// A warp's multiplies are its own as a whole, and over for all its lanes at once.
template <int PENDING> void wgmma_wait(float (&sum)[32][4]) {
    host::mine().finish(PENDING, sum);
    host::warp_meetings[host::warp()].wait(host::LANES, "wgmma.wait_group", true);
}

template <class T> void wgmma(float (&sum)[32][4], unsigned long long a, unsigned long long b, bool add) {
    auto& m = host::mine();
    host::require(m.fenced, "wgmma: registers of the sum were touched, and no fence came after");
    if (m.pending.empty()) std::memcpy(m.sum, sum, sizeof(sum));
    std::memset(sum, 0xff, sizeof(sum));
    m.pending.push_back({a, b, add, m.groups, m.run<T>});
}

template <int N> void hold(float (&)[N][4]) {}
inline void wgmma_fence() { host::mine().fenced = true; }
template <int PENDING> void wgmma_wait() {
    auto& m = host::mine();
    m.of_registers.finish(m.groups - PENDING);
    if (m.of_registers.pending.empty()) m.fenced = false;
    host::warp_meetings[host::warp()].wait(host::LANES, "wgmma.wait_group", true);
}

template <class T, bool ROWS_OF_K>
void wgmma_m64n64k16(float (&sum)[8][4], const unsigned (&a)[4], unsigned long long b, bool add) {
    auto& m = host::mine();
    host::require(m.fenced, "wgmma: registers were touched, and no fence came after");
    const auto& lanes = host::exchange("wgmma", {a[0], a[1], a[2], a[3]});
    host::RegisterMultiplies::Multiply multiply{sum, {}, b, add, m.groups, nullptr};
    for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < 16; ++k) {
            T pair[2];
            std::memcpy(static_cast<void*>(pair), &lanes[host::lane() / 4 * 4 + k % 8 / 2].words[half + k / 8 * 2], 4);
            multiply.a[half][k] = float(pair[k % 2]);
        }
    }
    multiply.element = [](unsigned long long b, int k, int column) {
        return ROWS_OF_K ? host::described_column<T>(b, k, column) : host::described_row<T>(b, column)[k];
    };
    m.of_registers.push(multiply);
}
