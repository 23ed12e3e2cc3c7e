// What the tests of token_reward's kernels share: rows, a vocabulary and targets, and the truth in f64.
#pragma once
#include "check.hpp"

#include <row_state.cuh>

#include <token_reward_merge.cu>

namespace check {

// How the logits lie.
enum class Logits { normal, peaked, low, equal };

template <class T> struct Head {
    int n, vocabulary, d;
    Logits which;
    std::vector<T> hidden, weight;
    std::vector<unsigned> targets;

    // The first element of d adds the same to every logit of a column, exactly.
    Head(int n, int vocabulary, int d, Logits which)
        : n(n), vocabulary(vocabulary), d(d), which(which), hidden(numbers<T>(size_t(n) * d)),
          weight(numbers<T>(size_t(vocabulary) * d)), targets(indices(n, vocabulary)) {
        // Where tiles and splits end is where targets get lost.
        const int edges[] = {0, vocabulary - 1, 63, 64, 255, 256, 1023, 1024, vocabulary / 256 * 256};
        for (int i = 0; i < std::min<int>(n, std::size(edges)); ++i) targets[i] = std::min(edges[i], vocabulary - 1);
        for (int i = 0; i < n; ++i) hidden[size_t(i) * d] = T(1.0f);
        for (int v = 0; v < vocabulary; ++v) {
            T* row = &weight[size_t(v) * d];
            const float scale = which == Logits::equal ? 0.0f : 2 / std::sqrt(float(d));
            for (int j = 0; j < d; ++j) row[j] = T(float(row[j]) * scale);
            const float sign = v % 64 == 3 ? 1.0f : -1.0f;
            const float first[] = {0.5f, sign * 300, -30000, 0.5f};
            row[0] = T(first[int(which)]);
        }
    }

    // The same, but the logits of `count` columns from `first` on are not a number.
    Head broken(int first, int count) const {
        Head other = *this;
        for (int v = first; v < first + count; ++v) other.weight[size_t(v) * d] = T(NAN);
        return other;
    }

    // The head of one row.
    Head row(int i) const {
        Head one = *this;
        one.n = 1;
        one.hidden.assign(&hidden[size_t(i) * d], &hidden[size_t(i) * d] + d);
        one.targets.assign(1, targets[i]);
        return one;
    }

    std::string shape() const {
        constexpr const char* names[] = {"normal", "peaked", "low", "equal"};
        return text(Type<T>::name, ", n ", n, ", V ", vocabulary, ", d ", d, ", ", names[int(which)]);
    }
};

// What rows of logits come to, when these are exact up to `error`. How far f32 moves the rest: the exponentials, and
// as many additions as one lane does.
struct Rewards {
    Truth logit, logsumexp, max, entropy;

    void add(const std::vector<double>& logits, unsigned target, double error) {
        constexpr double ADDITIONS = 100;
        double high = -INFINITY, sum = 0, moment = 0, slope = 0;
        for (double z : logits) high = std::max(high, z);
        for (double z : logits) sum += std::exp(z - high);
        for (double z : logits) moment += std::exp(z - high) * std::max(z - high, -1e300);
        const double log_sum = std::log(sum), h = log_sum - moment / sum;
        for (double z : logits) {
            const double log_p = std::max(z - high, -1e300) - log_sum;
            slope += std::exp(log_p) * std::abs(log_p + h);
        }
        logit.add(logits[target], error);
        logsumexp.add(high + log_sum, error + ADDITIONS * F32 + F32 * std::abs(high + log_sum));
        max.add(high, error);
        entropy.add(h, (2 * error + 4 * F32) * slope + ADDITIONS * F32 * (1 + h));
    }

    // Of all rows, as token_reward_merge writes it.
    Truth all() const {
        Truth all;
        for (const Truth* part : {&logit, &logsumexp, &max, &entropy}) {
            for (size_t i = 0; i < part->value.size(); ++i) all.add(part->value[i], part->bound[i]);
        }
        return all;
    }
};

// The f64 truth of a head. A tensor core adds 16 products at a time, a rounding each.
template <class T> Truth truth(const Head<T>& head) {
    Rewards rewards;
    std::vector<double> logits(head.vocabulary);
    for (int i = 0; i < head.n; ++i) {
        double scale = 0;
        const T* hidden = &head.hidden[size_t(i) * head.d];
        for (int v = 0; v < head.vocabulary; ++v) {
            const T* weight = &head.weight[size_t(v) * head.d];
            double sum = 0, size = 0;
            for (int j = 0; j < head.d; ++j) {
                const double product = double(float(hidden[j])) * double(float(weight[j]));
                sum += product;
                size += std::abs(product);
            }
            logits[v] = sum;
            scale = std::max(scale, size);
        }
        rewards.add(logits, head.targets[i], (head.d / 16 + 2) * F32 * scale);
    }
    return rewards.all();
}

// What a kernel's states come to.
inline std::vector<float> merged(const std::vector<RowState>& partials, int splits) {
    const int n = int(partials.size()) / splits;
    std::vector<float> out(4 * n, NAN);
    host::launch(dim3((n + 31) / 32), 32, 0, [&] { token_reward_merge(partials.data(), splits, out.data(), n); });
    return out;
}

// A logit that is not a number is not one that is not there: no row has a logsumexp or an entropy.
inline void nowhere(const std::string& kernel, const std::string& what, const std::vector<float>& out) {
    const size_t n = out.size() / 4;
    bool none = true;
    for (size_t i = 0; i < n; ++i) none &= std::isnan(out[n + i]) && std::isnan(out[3 * n + i]);
    std::printf("%-22s %-58s %s\n", kernel.c_str(), what.c_str(), none ? "no number" : "FAILED");
    all_within &= none;
}

// One row's part of that.
inline std::vector<float> of_row(const std::vector<float>& out, int row) {
    const size_t n = out.size() / 4;
    return {out[row], out[n + row], out[2 * n + row], out[3 * n + row]};
}

}  // namespace check
