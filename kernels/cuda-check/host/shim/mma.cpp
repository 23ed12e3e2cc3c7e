// See mma.hpp. Compiled without a sanitizer, as it only touches registers. Products are exact, and a sum of 16 of them
// rounded once.
#include "cuda.hpp"

namespace host {

namespace {

template <class T> double half_of(unsigned pair, int index) {
    T both[2];
    std::memcpy(static_cast<void*>(both), &pair, 4);
    return float(both[index]);
}

}  // namespace

template <class T> void multiply(float (&c)[4], const Slots& lanes) {
    double a[2][16], b[2][16];  // this lane's two rows and two columns
    for (int i = 0; i < 2; ++i) {
        for (int k = 0; k < 16; ++k) {
            const int quarter = k % 8 / 2, upper = k / 8;
            a[i][k] = half_of<T>(lanes[lane() / 4 * 4 + quarter].words[i + 2 * upper], k % 2);
            b[i][k] = half_of<T>(lanes[(lane() % 4 * 2 + i) * 4 + quarter].words[4 + upper], k % 2);
        }
    }
    for (int i = 0; i < 4; ++i) {
        double sum = c[i];
        for (int k = 0; k < 16; ++k) sum += a[i / 2][k] * b[i % 2][k];
        c[i] = float(sum);
    }
}

template void multiply<__half>(float (&c)[4], const Slots& lanes);
template void multiply<__nv_bfloat16>(float (&c)[4], const Slots& lanes);

}  // namespace host
