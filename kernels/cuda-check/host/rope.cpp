// rope: rotation in place, with and without the heads' norms. The grid has a block too many, which must do nothing.
//
// Bounds: one rounding to T; F32 for each of the few operations of a rotation, relative to the two products; with a
// norm also for its sum of squares.
#include "check.hpp"

#include <rope.cu>

using namespace check;

template <class T> void ropes(int n, int q_heads, int kv_heads, int head_dim, bool normed, Numbers which) {
    const int half = head_dim / 2, heads = q_heads + 2 * kv_heads, places = 11;
    const float eps = 1e-6f;
    auto qkv = numbers<T>(n * heads * head_dim, which);
    const auto before = qkv;
    const auto positions = indices(n, places);
    const auto q_norm = numbers<float>(head_dim), k_norm = numbers<float>(head_dim);
    std::vector<float> cos(places * half), sin(places * half);
    for (int i = 0; i < places * half; ++i) {
        const double angle = (i / half) * std::pow(1e4, -double(i % half) / half);
        cos[i] = float(std::cos(angle));
        sin[i] = float(std::sin(angle));
    }
    host::launch(dim3(n + 1, 2), 64, 0, [&] {
        KERNEL_FOR(T, rope)(qkv.data(), positions.data(), cos.data(), sin.data(), normed ? q_norm.data() : nullptr,
                            normed ? k_norm.data() : nullptr, eps, n, q_heads, kv_heads, head_dim);
    });
    Truth truth;
    for (int h = 0; h < n * heads; ++h) {
        const T* x = &before[h * head_dim];
        const int head = h % heads;
        const bool value = head >= q_heads + kv_heads;
        double squares = 0;
        for (int i = 0; i < head_dim; ++i) squares += double(float(x[i])) * float(x[i]);
        const auto element = [&](int i) {
            const double norm = (head < q_heads ? q_norm : k_norm)[i] / std::sqrt(squares / head_dim + eps);
            return float(x[i]) * (normed ? norm : 1);
        };
        for (int i = 0; i < head_dim; ++i) {
            if (value) {
                truth.add(float(x[i]), 0);
                continue;
            }
            const int at = positions[h / heads] * half + i % half;
            const double a = element(i) * cos[at], b = element((i + half) % head_dim) * sin[at] * (i < half ? -1 : 1);
            const double operations = normed ? head_dim / 32.0 + 5 + 8 : 3, size = std::abs(a) + std::abs(b);
            truth.add(a + b, rounding<T>(a + b) + operations * (F32 * size + Type<float>::floor));
        }
    }
    compare("rope", text("n ", n, ", heads ", q_heads, "/", kv_heads, " of ", head_dim, normed ? ", normed, " : ", ",
                         name(which)), qkv, truth);
}

int main() {
    for (bool normed : {false, true}) {
        for (int n : {0, 1, 3, 67}) FOR_TYPES(ropes, n, 4, 2, 24, normed, Numbers::normal);
        for (int head_dim : {2, 6, 40, 64, 80, 96, 128, 256})
            FOR_TYPES(ropes, 3, 3, 1, head_dim, normed, Numbers::normal);
        for (Numbers which : HOSTILE) FOR_TYPES(ropes, 3, 2, 2, 24, normed, which);
    }
    return status();
}
