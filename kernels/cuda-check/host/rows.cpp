// Kernels that treat each row on its own: rms_norm, row_dot, swiglu, token_logits_backward. Each grid has a block
// too many, which must do nothing.
//
// Bounds: one rounding to the output's T, and F32 for every f32 operation on the way. A block's sum takes an element
// through the additions of its thread, of its warp and of the warps.
#include "check.hpp"

#include <rms_norm.cu>
#include <row_dot.cu>
#include <swiglu.cu>
#include <token_logits_backward.cu>

using namespace check;

constexpr int THREADS = 64;

double additions(int d) { return (d + THREADS - 1) / THREADS * 4 + 5 + THREADS / 32; }

// Two sums one after the other, as no kernel here takes but any may.
void sums() {
    std::vector<float> out(2 * THREADS, NAN);
    host::launch(dim3(1), THREADS, 0, [&] {
        out[2 * threadIdx.x] = block_sum(threadIdx.x);
        out[2 * threadIdx.x + 1] = block_sum(1);
    });
    Truth truth;
    for (int i = 0; i < 2 * THREADS; ++i) truth.add(i % 2 == 0 ? THREADS * (THREADS - 1) / 2 : THREADS, 0);
    compare("block_sum", "twice", out, truth);
}

template <class T> void norms(int n, int d, bool chosen, Numbers which) {
    const float eps = 1e-6f;
    const int stored = n + 5;
    const auto x = numbers<float>(stored * d, which), weight = numbers<float>(d);
    const auto rows = indices(n, stored);
    std::vector<T> out(n * d, T(NAN));
    host::launch(dim3(n + 1), THREADS, 0, [&] {
        KERNEL_FOR(T, rms_norm)(x.data(), chosen ? rows.data() : nullptr, weight.data(), eps, out.data(), n, d);
    });
    Truth truth;
    for (int i = 0; i < n; ++i) {
        const float* row = &x[(chosen ? rows[i] : i) * d];
        double squares = 0;
        for (int j = 0; j < d; ++j) squares += double(row[j]) * row[j];
        for (int j = 0; j < d; ++j) {
            const double want = row[j] / std::sqrt(squares / d + eps) * weight[j];
            truth.add(want, rounding<T>(want) + (additions(d) / 2 + 6) * (F32 * std::abs(want) + Type<float>::floor));
        }
    }
    compare("rms_norm", text("n ", n, ", d ", d, chosen ? ", chosen rows, " : ", ", name(which)), out, truth);
}

template <class T> void dots(int n, int d, Numbers which) {
    const auto hidden = numbers<T>(n * d, which);
    const auto weight = numbers<float>(d);
    const float bias = 0.75f;
    std::vector<float> out(n, NAN);
    host::launch(dim3(n + 1), THREADS, 0, [&] {
        KERNEL_FOR(T, row_dot)(hidden.data(), weight.data(), bias, out.data(), n, d);
    });
    Truth truth;
    for (int i = 0; i < n; ++i) {
        double want = bias, scale = bias;
        for (int j = 0; j < d; ++j) {
            const double product = double(float(hidden[i * d + j])) * weight[j];
            want += product;
            scale += std::abs(product);
        }
        truth.add(want, (additions(d) + 2) * F32 * scale);
    }
    compare("row_dot", text("hidden ", Type<T>::name, ", n ", n, ", d ", d, ", ", name(which)), out, truth);
}

// Where e^-z is beyond f32, z / (1 + e^-z) is below |z| · 2^-127 and comes out as 0.
template <class T> void swiglus(int n, int m, Numbers which) {
    const auto gate_up = numbers<T>(n * 2 * m, which);
    std::vector<T> out(n * m, T(NAN));
    host::launch(dim3(n + 1, 2), 32, 0, [&] { KERNEL_FOR(T, swiglu)(gate_up.data(), out.data(), n, m); });
    Truth truth;
    for (int i = 0; i < n * m; ++i) {
        const double gate = float(gate_up[i / m * 2 * m + i % m]), up = float(gate_up[i / m * 2 * m + m + i % m]);
        const double want = gate / (1 + std::exp(-gate)) * up;
        const double lost = std::abs(gate * up) * 0x1p-127 + std::abs(up) * Type<float>::floor;
        truth.add(want, rounding<T>(want) + 6 * F32 * std::abs(want) + lost);
    }
    compare("swiglu", text("n ", n, ", m ", m, ", ", name(which)), out, truth);
}

// e^(z − logsumexp) is as exact as the difference: F32 · |difference| and an ulp or two of expf.
template <class T> void backs(int n, int columns, int ld, Numbers which) {
    const int first_column = 100;
    auto logits = numbers<T>(n * ld, which);
    const auto before = logits;
    const auto targets = indices(n, 300);  // some before the chunk, some in it, some after
    auto logsumexp = numbers<float>(n), entropy = numbers<float>(n);
    const auto g = numbers<float>(3 * n);
    Truth truth;
    for (int i = 0; i < n; ++i) {
        double max = -INFINITY;
        for (int j = 0; j < columns; ++j) max = std::max(max, double(float(before[i * ld + j])));
        logsumexp[i] += float(max) + 3;
        for (int j = 0; j < ld; ++j) {
            if (j >= columns) {
                truth.add(float(before[i * ld + j]), 0);  // beyond the chunk nothing is written
                continue;
            }
            const double log_p = double(float(before[i * ld + j])) - logsumexp[i], p = std::exp(log_p);
            const double factor = g[3 * i + 1] - g[3 * i + 2] * (log_p + entropy[i]);
            const double size =
                std::abs(g[3 * i + 1]) + std::abs(g[3 * i + 2]) * (std::abs(log_p) + std::abs(entropy[i]));
            const double logit = int(targets[i]) == first_column + j ? g[3 * i] : 0;
            const double want = factor * p + logit;
            const double inner = p * size * (std::abs(log_p) + 8) + std::abs(want);
            truth.add(want, rounding<T>(want) + F32 * inner + (size + 1) * 2 * Type<float>::floor);
        }
    }
    host::launch(dim3(n + 1, 2), 32, 0, [&] {
        KERNEL_FOR(T, token_logits_backward)(logits.data(), ld, first_column, columns, targets.data(),
                                             logsumexp.data(), entropy.data(), g.data(), n);
    });
    const auto shape = text("n ", n, ", columns ", columns, " of ", ld, ", ", name(which));
    compare("token_logits_backward", shape, logits, truth);
}

int main() {
    sums();
    for (int n : {0, 1, 3, 67}) {
        FOR_TYPES(norms, n, 72, false, Numbers::normal);
        FOR_TYPES(dots, n, 72, Numbers::normal);
        FOR_TYPES(swiglus, n, 72, Numbers::normal);
        FOR_TYPES(backs, n, 200, 208, Numbers::normal);
    }
    for (int d : {1, 7, 33, 600}) {
        FOR_TYPES(norms, 3, d, true, Numbers::normal);
        FOR_TYPES(dots, 3, d, Numbers::normal);
        FOR_TYPES(swiglus, 3, d, Numbers::normal);
        FOR_TYPES(backs, 3, d, d + 3, Numbers::normal);
    }
    for (Numbers which : HOSTILE) {
        FOR_TYPES(norms, 3, 67, false, which);
        FOR_TYPES(dots, 3, 67, which);
        FOR_TYPES(swiglus, 3, 67, which);
        FOR_TYPES(backs, 3, 200, 200, which);
    }
    return status();
}
