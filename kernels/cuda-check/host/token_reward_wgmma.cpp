// token_reward, form (c), with TMA, barriers in shared memory and wgmma emulated, alone and in clusters of two
// blocks.
#include "shim/wgmma.hpp"
#include "token_reward.hpp"

#include <token_reward_wgmma.cu>

using namespace check;

template <class T> std::vector<float> multiplied(const Head<T>& head, int together, int cluster) {
    const int splits = (head.vocabulary + SPLIT - 1) / SPLIT, tiles = (head.n + ROWS - 1) / ROWS;
    const auto hidden = host::tensor_map(head.hidden.data(), head.n, head.d, BOX_ROWS);
    const auto weight = host::tensor_map(head.weight.data(), head.vocabulary, head.d, BOX_ROWS);
    std::vector<RowState> partials(size_t(splits) * head.n, RowState{NAN, NAN, NAN, NAN});
    const dim3 grid(together, splits, (tiles + together - 1) / together);
    const auto kernel = [&] {
        KERNEL_16_BIT_FOR(T, token_reward_wgmma)(hidden, weight, head.targets.data(), partials.data(), head.n,
                                                 head.vocabulary, head.d);
    };
    host::launch(grid, THREADS, sizeof(Shared<T>) + alignof(Shared<T>), kernel, cluster);
    return merged(partials, splits);
}

template <class T> void multiplies(int n, int vocabulary, int d, Logits which) {
    const Head<T> head(n, vocabulary, d, which);
    const auto one = multiplied(head, 1, 1);
    compare("token_reward_wgmma", head.shape(), one, truth(head));
    same_bits("token_reward_wgmma", head.shape() + ", a cluster of 2", multiplied(head, 2, 2), one);
    nowhere("token_reward_wgmma", head.shape() + ", one broken", multiplied(head.broken(vocabulary / 3, 1), 1, 1));
}

// A row's result does not depend on the others. Of the 6 tiles of this grid 3 have rows, so that a cluster is half
// empty and another is all empty.
template <class T> void alone(int n, int vocabulary, int d) {
    const Head<T> head(n, vocabulary, d, Logits::normal);
    const auto all = multiplied(head, 6, 2);
    const auto one = multiplied(head.row(n - 1), 1, 1);
    same_bits("token_reward_wgmma", head.shape() + ", a row alone", one, of_row(all, n - 1));
}

int main() {
    FOR_16_BIT_TYPES(multiplies, 1, 1, 8, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 9, 2100, 64, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 130, 257, 200, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 9, 1000, 520, Logits::normal);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::peaked);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::low);
    FOR_16_BIT_TYPES(multiplies, 9, 1027, 72, Logits::equal);
    FOR_16_BIT_TYPES(alone, 270, 1030, 96);
    return status();
}
