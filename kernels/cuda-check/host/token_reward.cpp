// token_reward, forms (a) and (b): logits_reduce over chunks of columns, and the multiply with mma.sync.
#include "token_reward.hpp"

#include <logits_reduce.cu>

#include <token_reward_mma.cu>

using namespace check;

// The rewards of logits [n, V], chunk after chunk as the multiply would leave them, rows of `ld`, of which what is
// beyond the chunk is not vocabulary.
template <class T>
std::vector<float> reduced(const std::vector<T>& logits, const std::vector<unsigned>& targets, int chunk, int ld) {
    const int n = int(targets.size()), vocabulary = int(logits.size()) / n;
    std::vector<RowState> states(n, RowState{NEVER, NEVER, 0, 0});
    for (int first = 0; first < vocabulary; first += chunk) {
        const int columns = std::min(chunk, vocabulary - first);
        std::vector<T> part(size_t(n) * ld, T(NAN));
        for (int i = 0; i < n; ++i) std::copy_n(&logits[i * vocabulary + first], columns, &part[i * ld]);
        host::launch(dim3(n), 64, 0, [&] {
            KERNEL_FOR(T, logits_reduce)(part.data(), ld, first, columns, targets.data(), states.data(), n);
        });
    }
    return merged(states, 1);
}

template <class T> void reduces(int n, int vocabulary, int chunk, int spare, Numbers which) {
    const int ld = chunk + spare;
    auto logits = numbers<T>(size_t(n) * vocabulary, which);
    const auto targets = indices(n, vocabulary);
    if (n > 1) std::fill(&logits[0], &logits[vocabulary - 1], T(-INFINITY));  // all but one are out of T's range
    Rewards rewards;
    for (int i = 0; i < n; ++i) {
        const T* row = &logits[size_t(i) * vocabulary];
        std::vector<double> exact(vocabulary);
        for (int v = 0; v < vocabulary; ++v) exact[v] = float(row[v]);
        rewards.add(exact, targets[i], 0);
    }
    const auto shape = text("n ", n, ", V ", vocabulary, " by ", chunk, " of ", ld, ", ", name(which));
    compare("logits_reduce", text(Type<T>::name, ", ", shape), reduced(logits, targets, chunk, ld), rewards.all());
    for (int i = 0; i < n; ++i) logits[size_t(i) * vocabulary + vocabulary / 2] = T(NAN);
    nowhere("logits_reduce", text(Type<T>::name, ", ", shape, ", one broken"), reduced(logits, targets, chunk, ld));
}

// All rows' rewards by the multiply, `together` tiles of rows side by side.
template <class T> std::vector<float> multiplied(const Head<T>& head, int together) {
    const int splits = (head.vocabulary + SPLIT - 1) / SPLIT, tiles = (head.n + ROWS - 1) / ROWS;
    std::vector<RowState> partials(size_t(splits) * head.n, RowState{NAN, NAN, NAN, NAN});
    host::launch(dim3(together, splits, (tiles + together - 1) / together), THREADS, sizeof(Shared<T>), [&] {
        KERNEL_16_BIT_FOR(T, token_reward_mma)(head.hidden.data(), head.weight.data(), head.targets.data(),
                                               partials.data(), head.n, head.vocabulary, head.d);
    });
    return merged(partials, splits);
}

template <class T> void multiplies(int n, int vocabulary, int d, Logits which) {
    const Head<T> head(n, vocabulary, d, which);
    compare("token_reward_mma", head.shape(), multiplied(head, 1), truth(head));
    const int third = vocabulary / 3;
    for (int count : {1, vocabulary - third}) {
        const Head<T> broken = head.broken(third, count);
        nowhere("token_reward_mma", text(head.shape(), ", ", count, " broken"), multiplied(broken, 1));
    }
}

// A row's result depends neither on the other rows nor on the grid.
template <class T> void alone(int n, int vocabulary, int d) {
    const Head<T> head(n, vocabulary, d, Logits::normal);
    const auto all = multiplied(head, 1);
    same_bits("token_reward_mma", head.shape() + ", 3 tiles together", multiplied(head, 3), all);
    same_bits("token_reward_mma", head.shape() + ", a row alone", multiplied(head.row(n - 1), 1), of_row(all, n - 1));
}

int main() {
    FOR_TYPES(reduces, 3, 2500, 1000, 0, Numbers::normal);
    FOR_TYPES(reduces, 2, 1027, 513, 2, Numbers::normal);
    FOR_TYPES(reduces, 1, 1, 1, 7, Numbers::normal);
    for (Numbers which : HOSTILE) FOR_TYPES(reduces, 2, 1030, 512, 0, which);

    FOR_16_BIT_TYPES(multiplies, 1, 1, 8, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 9, 2100, 64, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 130, 257, 200, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::peaked);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::low);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::equal);
    FOR_16_BIT_TYPES(alone, 131, 1030, 96);
    return status();
}
