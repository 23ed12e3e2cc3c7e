// attention_wgmma over forests, with barriers in shared memory and wgmma emulated.
#include "shim/wgmma.hpp"
#include "attention.hpp"

#include <attention_wgmma.cu>

using namespace check;

struct Warpgroups {
    static constexpr const char* NAME = "attention_wgmma";
    static constexpr int THREADS = warpgroups::THREADS, ROWS = warpgroups::ROWS;
    static constexpr bool ROUNDS = true;
    static size_t shared_bytes(int dim) { return 4 * 2 * 64 * 2 * dim + 2048; }
    template <class T> static auto symbol() { return KERNEL_16_BIT_FOR(T, attention_wgmma); }
};

template <class T>
void tests(const std::vector<Segment>& segments, const Heads& heads, Numbers which = Numbers::normal) {
    test<Warpgroups, T>(segments, heads, which);
}

template <class T> void cut(const Heads& heads) { cuts<Warpgroups, T>(heads); }

int main() {
    for (const auto& segments : {ONE, THREE, CHAIN}) FOR_16_BIT_TYPES(tests, segments, {2, 1, 64});
    for (int dim : {64, 128}) FOR_16_BIT_TYPES(tests, FOREST, {2, 1, dim});
    tests<__nv_bfloat16>({{330, -1}}, {2, 1, 64});  // more blocks of keys than stages
    for (int window : {1, 5, 40}) tests<__half>(FOREST, {2, 2, 64, window});
    for (Numbers which : HOSTILE) FOR_16_BIT_TYPES(tests, FOREST, {2, 1, 64}, which);
    tests<__half>(THREE, {131, 1, 64});  // more heads than rows of a block
    FOR_16_BIT_TYPES(cut, {2, 1, 64});
    return status();
}
