// attention over forests: shared prefixes, kept rows, windows, grouped heads.
#include "attention.hpp"

#include <attention.cu>

using namespace check;

struct Plain {
    static constexpr const char* NAME = "attention";
    static constexpr int THREADS = 128, ROWS = 32;
    static constexpr bool ROUNDS = false;
    static size_t shared_bytes(int dim) { return 4 * (32 * dim + 32 * (dim + 4) + 32 * 32); }
    template <class T> static auto symbol() { return KERNEL_FOR(T, attention); }
};

template <class T>
void tests(const std::vector<Segment>& segments, const Heads& heads, Numbers which = Numbers::normal) {
    test<Plain, T>(segments, heads, which);
}

template <class T> void cut(const Heads& heads) { cuts<Plain, T>(heads); }

int main() {
    for (const auto& segments : {ONE, THREE, CHAIN}) FOR_TYPES(tests, segments, {2, 1, 24});
    for (int dim : {24, 40}) FOR_TYPES(tests, FOREST, {4, 2, dim});
    for (int dim : {64, 80, 96, 128, 256}) tests<float>(FOREST, {3, 1, dim});
    for (int window : {1, 5, 40}) tests<float>(FOREST, {2, 2, 8, window});
    for (Numbers which : HOSTILE) FOR_TYPES(tests, FOREST, {2, 1, 24}, which);
    tests<float>(THREE, {67, 1, 8});  // more heads than rows of a block
    FOR_TYPES(cut, {2, 1, 24});
    return status();
}
