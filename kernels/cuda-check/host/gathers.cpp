// Kernels that move or scale rows: embed, keys_values, dequantize. Each grid has a block too many, which must do
// nothing.
#include "check.hpp"

#include <dequantize.cu>
#include <embed.cu>
#include <keys_values.cu>

using namespace check;

template <class T> void embeds(int n, int d) {
    const int vocabulary = 37;
    const auto table = numbers<T>(vocabulary * d, Numbers::huge);
    const auto ids = indices(n, vocabulary);
    std::vector<float> out(n * d, NAN);
    host::launch(dim3(n + 1, 2), 32, 0, [&] { KERNEL_FOR(T, embed)(ids.data(), table.data(), out.data(), n, d); });
    Truth truth;
    for (int i = 0; i < n * d; ++i) truth.add(float(table[ids[i / d] * d + i % d]), 0);  // f32 holds every T
    compare("embed", text("table ", Type<T>::name, ", n ", n, ", d ", d), out, truth);
}

template <class T> void gathers(int count, int q_heads, int kv_heads, int head_dim) {
    const int n = 19, width = (q_heads + 2 * kv_heads) * head_dim, kept = 2 * kv_heads * head_dim;
    const auto qkv = numbers<T>(n * width);
    const auto rows = indices(count, n);
    std::vector<unsigned> places(count);
    for (int i = 0; i < count; ++i) places[i] = count - 1 - i;
    std::vector<T> out(count * kept, T(NAN)), want;
    host::launch(dim3(count + 1, 2), 32, 0, [&] {
        KERNEL_FOR(T, keys_values)
        (qkv.data(), rows.data(), places.data(), out.data(), count, q_heads, kv_heads, head_dim);
    });
    for (int i = 0; i < count * kept; ++i)
        want.push_back(qkv[rows[places[i / kept]] * width + q_heads * head_dim + i % kept]);
    same_bits("keys_values", text("rows ", count, ", heads ", q_heads, "/", kv_heads, " of ", head_dim), out, want);
}

// One multiply in f32, then rounded to T.
template <class T> void dequantizes(int rows, int k) {
    std::vector<signed char> weight(rows * k);
    for (auto& w : weight) w = random_bits();
    const auto scale = numbers<float>(rows);
    std::vector<T> out(rows * k, T(NAN));
    host::launch(dim3(rows + 1, 2), 32, 0, [&] {
        KERNEL_16_BIT_FOR(T, dequantize)(weight.data(), scale.data(), out.data(), rows, k);
    });
    Truth truth;
    for (int i = 0; i < rows * k; ++i) {
        const double want = double(weight[i]) * scale[i / k];
        truth.add(want, rounding<T>(want) + 2 * F32 * std::abs(want));
    }
    compare("dequantize", text("rows ", rows, ", k ", k), out, truth);
}

int main() {
    for (int n : {0, 1, 3, 67}) FOR_TYPES(embeds, n, 72);
    for (int d : {1, 7, 33, 50}) FOR_TYPES(embeds, 3, d);
    for (int count : {0, 1, 3, 67}) FOR_TYPES(gathers, count, 4, 2, 24);
    for (int head_dim : {3, 4, 40, 64}) FOR_TYPES(gathers, 3, 3, 1, head_dim);
    for (int rows : {0, 1, 3, 67}) FOR_16_BIT_TYPES(dequantizes, rows, 48);
    for (int k : {1, 15, 33}) FOR_16_BIT_TYPES(dequantizes, 3, k);
    return status();
}
