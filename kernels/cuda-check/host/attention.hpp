// What the tests of the attention kernels share. A kernel is a type that says its symbol for T, its name, its
// threads, how many rows it takes at once, its shared memory, and whether it rounds weights to T.
//
// Bounds: a score's error ε moves its weight by the factor e^ε, and the sum of the weights as well: 2ε of Σ p|v|. The
// sums over keys add F32 for each key; the output is rounded to T. Weights rounded to T before their multiply: T's
// unit of Σ p|v|, and its floor for weights that small.
#pragma once
#include "forest.hpp"

namespace check {

template <class Kernel, class T>
std::vector<T> outputs(const Forest& forest, const Heads& heads, const std::vector<T>& qkv,
                       const std::vector<T>& kept) {
    std::vector<T> out(forest.n * heads.q * heads.dim, T(NAN));
    host::launch(dim3(forest.tasks.size(), heads.kv), Kernel::THREADS, Kernel::shared_bytes(heads.dim), [&] {
        Kernel::template symbol<T>()(qkv.data(), kept.data(), forest.tasks.data(), forest.key_rows.data(), out.data(),
                                     forest.n, heads.q, heads.kv, heads.dim, heads.window);
    });
    return out;
}

// Makes random rows of queries (the first `queries` columns), keys and values hostile. Scores to ±200, to far below
// 0, all equal; values denormal or huge.
template <class T> void make_hostile(std::vector<T>& rows, int queries, int keys, Numbers which) {
    const int width = queries + 2 * keys;
    const auto extreme = numbers<T>(rows.size(), which);
    for (size_t i = 0; i < rows.size(); ++i) {
        const int column = i % width;
        const bool query = column < queries, value = column >= queries + keys;
        const float x = float(rows[i]);
        switch (which) {
            case Numbers::normal: break;
            case Numbers::peaked: rows[i] = T(query ? 60 * x : x); break;
            case Numbers::low: rows[i] = T(value ? x : query ? 30 + x : -30 + x); break;
            case Numbers::huge: rows[i] = value ? extreme[i] : rows[i]; break;
            case Numbers::tiny:
            case Numbers::equal: rows[i] = extreme[i]; break;
        }
    }
}

template <class Kernel, class T>
void test(const std::vector<Segment>& segments, const Heads& heads, Numbers which = Numbers::normal) {
    const Forest forest(segments, std::max(1, Kernel::ROWS / heads.group()));
    auto qkv = numbers<T>(forest.n * heads.width()), kept = numbers<T>(forest.kept * 2 * heads.kv * heads.dim);
    make_hostile(qkv, heads.q * heads.dim, heads.kv * heads.dim, which);
    make_hostile(kept, 0, heads.kv * heads.dim, which);
    const auto out = outputs<Kernel>(forest, heads, qkv, kept);
    Truth truth;
    for (int i = 0; i < forest.n * heads.q; ++i) {
        const Row row = attend(forest, heads, qkv, kept, i / heads.q, i % heads.q);
        const double moved = 2 * row.score_error + (row.keys + 10) * F32 + (Kernel::ROUNDS ? Type<T>::unit : 0);
        const double lost = Kernel::ROUNDS ? Type<T>::floor : Type<float>::floor;
        for (int j = 0; j < heads.dim; ++j)
            truth.add(row.out[j], rounding<T>(row.out[j]) + moved * row.size[j] + lost * row.values[j]);
    }
    compare(Kernel::NAME,
            text("n ", forest.n, " + ", forest.kept, " kept, heads ", heads.q, "/", heads.kv, " of ", heads.dim,
                 heads.window ? text(", window ", heads.window) : "", ", ", name(which)), out, truth);
}

// Two answers to one prompt, across the end of a block of keys: their bits in a forest that shares the prompt, one
// that does not, one that has the prompt kept, and with tasks of other lengths. Scores are large, so that rounding
// shows.
template <class Kernel, class T> void cuts(const Heads& heads) {
    const int prompt = 50, answer = 30, width = heads.width(), out_width = heads.q * heads.dim;
    auto shared = numbers<T>((prompt + 2 * answer) * width);
    make_hostile(shared, out_width, heads.kv * heads.dim, Numbers::peaked);
    const auto part = [](const std::vector<T>& all, int first, int rows, int width) {
        return std::vector<T>(all.begin() + first * width, all.begin() + (first + rows) * width);
    };
    const std::vector<T> none;
    const auto want = outputs<Kernel>(Forest({{prompt, -1}, {answer, 0}, {answer, 0}}, 16), heads, shared, none);

    std::vector<T> alone = part(shared, 0, prompt, width), second = part(shared, prompt + answer, answer, width);
    alone.insert(alone.end(), second.begin(), second.end());
    const auto out = outputs<Kernel>(Forest({{prompt + answer, -1}}, 9), heads, alone, none);
    same_bits(Kernel::NAME, text("alone, heads ", heads.q, "/", heads.kv, " of ", heads.dim),
              part(out, prompt, answer, out_width), part(want, prompt + answer, answer, out_width));

    std::vector<T> kept;
    for (int i = prompt; i-- > 0;) {
        const auto row = part(shared, i, 1, width);
        kept.insert(kept.end(), row.begin() + out_width, row.end());
    }
    same_bits(Kernel::NAME, text("after a kept prompt, heads ", heads.q, "/", heads.kv, " of ", heads.dim),
              outputs<Kernel>(Forest({{prompt, -1, true}, {answer, 0}}, 5), heads, second, kept),
              part(want, prompt + answer, answer, out_width));
}

inline const std::vector<Segment> ONE{{1, -1}}, THREE{{3, -1}}, CHAIN{{67, -1}};
// A prompt that was kept, answers to it, an answer that goes on twice, and a prompt on its own.
inline const std::vector<Segment> FOREST{{33, -1, true}, {9, 0}, {5, 1}, {7, 1}, {3, -1}, {40, 0}};

}  // namespace check
