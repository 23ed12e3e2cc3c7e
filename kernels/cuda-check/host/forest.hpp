// Forests of segments for the attention tests: what the kernels are told about one, and attention over it in f64.
#pragma once
#include "check.hpp"

#include <attention.cuh>

namespace check {

// Tokens that continue another segment's (−1: none's). Those that were kept come from an earlier batch: they have
// keys and values, and no queries.
struct Segment {
    int length, parent;
    bool kept = false;
};

struct Heads {
    int q, kv, dim, window = 0;
    int width() const { return (q + 2 * kv) * dim; }
    int group() const { return q / kv; }
};

struct Forest {
    std::vector<AttentionTask> tasks;
    std::vector<unsigned> key_rows;
    // Of every row of the batch: its chain in key_rows and its position.
    std::vector<unsigned> chains, positions;
    int n = 0, kept = 0;

    // Tasks of at most `queries` queries. Kept rows lie backwards, so that who takes them for a run is found out.
    Forest(const std::vector<Segment>& segments, int queries) {
        std::vector<std::vector<unsigned>> rows;  // of each segment's chain
        for (const Segment& s : segments) (s.kept ? kept : n) += s.length;
        int row = 0, kept_row = kept;
        for (const Segment& s : segments) {
            std::vector<unsigned> chain = s.parent < 0 ? std::vector<unsigned>() : rows[s.parent];
            const unsigned start = row, position = chain.size(), at = key_rows.size();
            for (int i = 0; i < s.length; ++i) chain.push_back(s.kept ? n + --kept_row : row++);
            rows.push_back(chain);
            if (s.kept) continue;
            key_rows.insert(key_rows.end(), chain.begin(), chain.end());
            for (unsigned i = 0; i < unsigned(s.length); ++i) {
                chains.push_back(at);
                positions.push_back(position + i);
                const unsigned left = s.length - i;
                if (i % queries != 0) continue;
                tasks.push_back({start + i, std::min(left, unsigned(queries)), position + i, at});
            }
        }
    }
};

// A row's scores, seen from the query of one head: what the bound of its error needs, besides the truth.
struct Row {
    std::vector<double> out, size;  // Σ p v and Σ p |v|, per element
    std::vector<double> values;     // Σ |v|
    double keys = 0, score_error = 0;
};

template <class T>
Row attend(const Forest& forest, const Heads& heads, const std::vector<T>& qkv, const std::vector<T>& kept, int row,
           int head) {
    const int d = heads.dim, kv = head / heads.group();
    const auto at = [&](unsigned key, int section) {  // section 0: keys, 1: values
        if (key < unsigned(forest.n)) return &qkv[key * heads.width() + (heads.q + section * heads.kv + kv) * d];
        return &kept[((key - forest.n) * 2 + section) * heads.kv * d + kv * d];
    };
    const T* q = &qkv[row * heads.width() + head * d];
    const int position = forest.positions[row], low = heads.window ? std::max(0, position + 1 - heads.window) : 0;
    std::vector<double> scores;
    Row result{std::vector<double>(d), std::vector<double>(d), std::vector<double>(d)};
    double max = -INFINITY, sum = 0;
    for (int p = low; p <= position; ++p) {
        const T* key = at(forest.key_rows[forest.chains[row] + p], 0);
        double score = 0, size = 0;
        for (int i = 0; i < d; ++i) {
            score += double(float(q[i])) * float(key[i]);
            size += std::abs(double(float(q[i])) * float(key[i]));
        }
        scores.push_back(score / std::sqrt(d));
        max = std::max(max, scores.back());
        result.score_error = std::max(result.score_error, (d + 4) * F32 * size / std::sqrt(d));
    }
    for (double& s : scores) sum += s = std::exp(s - max);
    for (int p = low; p <= position; ++p) {
        const T* value = at(forest.key_rows[forest.chains[row] + p], 1);
        for (int i = 0; i < d; ++i) {
            const double v = float(value[i]), weighted = scores[p - low] / sum * v;
            result.out[i] += weighted;
            result.size[i] += std::abs(weighted);
            result.values[i] += std::abs(v);
        }
    }
    result.keys = scores.size();
    return result;
}

}  // namespace check
