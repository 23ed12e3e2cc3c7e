// attention_mma over forests: shared prefixes, kept rows, windows, grouped heads.
#include "attention.hpp"

#include <attention_mma.cu>

using namespace check;

struct Tensor {
    static constexpr const char* NAME = "attention_mma";
    static constexpr int THREADS = 256, ROWS = 128;
    static constexpr bool ROUNDS = true;
    static size_t shared_bytes(int dim) { return 512 * (dim + 8) + 1024; }
    template <class T> static auto symbol() { return KERNEL_16_BIT_FOR(T, attention_mma); }
};

template <class T>
void tests(const std::vector<Segment>& segments, const Heads& heads, Numbers which = Numbers::normal) {
    test<Tensor, T>(segments, heads, which);
}

template <class T> void cut(const Heads& heads) { cuts<Tensor, T>(heads); }

int main() {
    for (const auto& segments : {ONE, THREE, CHAIN}) FOR_16_BIT_TYPES(tests, segments, {2, 1, 16});
    for (int dim : {32, 48, 64, 80, 96, 112, 128}) FOR_16_BIT_TYPES(tests, FOREST, {2, 1, dim});
    FOR_16_BIT_TYPES(tests, FOREST, {4, 2, 64});
    for (int window : {1, 5, 40}) tests<__half>(FOREST, {2, 2, 16, window});
    for (Numbers which : HOSTILE) FOR_16_BIT_TYPES(tests, FOREST, {2, 1, 16}, which);
    tests<__half>(THREE, {131, 1, 16});  // more heads than rows of a block
    FOR_16_BIT_TYPES(cut, {2, 1, 16});
    return status();
}
