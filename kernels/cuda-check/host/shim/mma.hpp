// The instructions of kernels/src/cuda/mma.cuh on the host, with the layouts that the PTX ISA documents; a part of
// cuda.hpp.
//
// A matrix of a collective is put together from what the 32 lanes hold, and each lane takes its share of the result.
// Copies are as late as the hardware may be: where one will arrive there is poison (NaN) until the thread has waited
// for it.
#pragma once
#include <vector>

namespace host {

// c += what this lane holds of a · b, from the registers that the lanes gave: four of a, two of b.
template <class T> void multiply(float (&c)[4], const Slots& lanes);
extern template void multiply<__half>(float (&c)[4], const Slots& lanes);
extern template void multiply<__nv_bfloat16>(float (&c)[4], const Slots& lanes);

inline void ldmatrix(const char* what, unsigned (&out)[4], const void* row, bool transposed) {
    require(reinterpret_cast<size_t>(row) % 16 == 0, "ldmatrix: a row that is not aligned to 16 bytes");
    const Slots& rows = exchange(what, slot_of(row));
    const int line = lane() / 4, first = lane() % 4 * 2;
    for (int m = 0; m < 4; ++m) {
        // Matrix m's element at (row, column), by the addresses that lanes 8m .. 8m + 7 gave.
        const auto element = [&](int row, int column) {
            unsigned short bits;
            std::memcpy(&bits, value_of<const unsigned char*>(rows[8 * m + row]) + 2 * column, 2);
            return unsigned(bits);
        };
        out[m] = transposed ? element(first, line) | element(first + 1, line) << 16
                            : element(line, first) | element(line, first + 1) << 16;
    }
}

// A thread's copies on their way, oldest first, and the number of groups it has closed.
struct Copies {
    struct Copy {
        void* to;
        const void* from;
        bool present;
        int group;
    };
    std::vector<Copy> pending;
    int groups = 0;
    bool seen = true;  // by what reads shared memory on another way, once a fence came after

    void finish(int groups_left) {
        size_t done = 0;
        for (; done < pending.size() && pending[done].group < groups - groups_left; ++done) {
            const Copy& copy = pending[done];
            copy.present ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
        }
        pending.erase(pending.begin(), pending.begin() + done);
    }
};
inline Copies copies[LANES * MAX_WARPS];

inline void require_no_copies() {
    for (const Copies& thread : copies) require(thread.pending.empty(), "cp.async: a block ended before its copies");
}

}  // namespace host

template <class T> void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    host::multiply<T>(c, host::exchange("mma.sync", {a[0], a[1], a[2], a[3], b0, b1}));
}

inline void ldmatrix_x4(unsigned (&m)[4], const void* row) { host::ldmatrix("ldmatrix", m, row, false); }
inline void ldmatrix_x4_trans(unsigned (&m)[4], const void* row) { host::ldmatrix("ldmatrix.trans", m, row, true); }

inline void cp_async_16(void* to, const void* from, bool present) {
    const bool aligned = reinterpret_cast<size_t>(to) % 16 == 0 && reinterpret_cast<size_t>(from) % 16 == 0;
    host::require(aligned, "cp.async: addresses that are not aligned to 16 bytes");
    std::memset(to, 0xff, 16);
    auto& mine = host::copies[threadIdx.x];
    mine.seen = false;
    mine.pending.push_back({to, from, present, mine.groups});
}

inline void cp_async_commit() { ++host::copies[threadIdx.x].groups; }
template <int PENDING> void cp_async_wait() { host::copies[threadIdx.x].finish(PENDING); }
