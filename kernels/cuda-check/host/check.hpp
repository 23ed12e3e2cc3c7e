// What the host's tests share: types by name, random and hostile numbers, and the comparison with f64, a line each.
//
// A test says for every element what the truth is and how far rounding may move it. An error above that bound fails;
// how much of the bound the worst one used is printed, so that a bound without meaning is seen.
#pragma once
#include <algorithm>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "shim/cuda.hpp"

namespace check {

// The largest relative error of rounding to T, the largest absolute one near zero, and the largest number.
template <class T> struct Type;
template <> struct Type<float> {
    static constexpr const char* name = "f32";
    static constexpr double unit = 0x1p-24, floor = 0x1p-150, largest = 0x1.fffffep127;
};
template <> struct Type<__half> {
    static constexpr const char* name = "f16";
    static constexpr double unit = 0x1p-11, floor = 0x1p-25, largest = 65504;
};
template <> struct Type<__nv_bfloat16> {
    static constexpr const char* name = "bf16";
    static constexpr double unit = 0x1p-8, floor = 0x1p-134, largest = 0x1.fep127;
};
constexpr double F32 = Type<float>::unit;

// How far rounding the exact x to T moves it.
template <class T> double rounding(double x) { return Type<T>::unit * std::abs(x) + Type<T>::floor; }

// The kernel of T among the symbols of a kernel.
#define KERNEL_FOR(T, name) check::pick<T>(f32::name##_f32, f16::name##_f16, bf16::name##_bf16)
#define KERNEL_16_BIT_FOR(T, name) check::pick<T>(nullptr, f16::name##_f16, bf16::name##_bf16)
template <class T, class A, class B, class C> auto pick(A f32, B f16, C bf16) {
    if constexpr (std::is_same_v<T, float>) return f32;
    else if constexpr (std::is_same_v<T, __half>) return f16;
    else return bf16;
}

inline std::mt19937 random_bits(1);

enum class Numbers { normal, peaked, tiny, huge, equal, low };
constexpr Numbers HOSTILE[] = {Numbers::peaked, Numbers::tiny, Numbers::huge, Numbers::equal, Numbers::low};

inline const char* name(Numbers numbers) {
    constexpr const char* names[] = {"normal", "peaked", "tiny", "huge", "equal", "low"};
    return names[int(numbers)];
}

// `tiny` ones are denormal, `huge` ones as large as a sum of a few thousand squares in f32 allows, and as T does.
template <class T> std::vector<T> numbers(size_t count, Numbers which = Numbers::normal) {
    std::normal_distribution<double> normal;
    std::vector<T> out(count);
    for (T& x : out) {
        const double z = normal(random_bits);
        const double huge = std::min(1e16, Type<T>::largest / 32);
        const double peaked = random_bits() % 8 == 0 ? (z > 0 ? 300 : -300) : z;
        const double values[] = {z, peaked, z * 64 * Type<T>::floor, std::clamp(z, -3.0, 3.0) * huge, 1.5, -3e4 + z};
        x = T(float(values[int(which)]));
    }
    return out;
}

inline std::vector<unsigned> indices(size_t count, unsigned below) {
    std::vector<unsigned> out(count);
    for (unsigned& i : out) i = random_bits() % below;
    return out;
}

// Its arguments side by side.
template <class... Parts> std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

inline bool all_within = true;

// What the truth is, element by element, and the bound of an error.
struct Truth {
    std::vector<double> value, bound;
    void add(double x, double error) {
        value.push_back(x);
        bound.push_back(error);
    }
};

template <class T> void compare(const std::string& kernel, const std::string& shape, const std::vector<T>& got,
                                const Truth& truth) {
    double worst = 0, used = 0;
    bool within = got.size() == truth.value.size();
    for (size_t i = 0; within && i < got.size(); ++i) {
        const double x = float(got[i]), want = truth.value[i], error = std::abs(x - want);
        if (std::isinf(x) && std::abs(want) + truth.bound[i] >= Type<T>::largest && (x > 0) == (want > 0)) continue;
        if (!(error <= truth.bound[i])) {
            std::printf("element %zu is %.9g, not %.9g ± %.2g\n", i, x, want, truth.bound[i]);
            within = false;
        }
        worst = std::max(worst, error);
        if (error > 0) used = std::max(used, error / truth.bound[i]);
    }
    std::printf("%-22s %-5s %-52s %9.2e  %3.0f %% of its bound%s\n", kernel.c_str(), Type<T>::name, shape.c_str(),
                worst, 100 * used, within ? "" : "  FAILED");
    all_within &= within;
}

// Bit for bit.
template <class T> void same_bits(const std::string& kernel, const std::string& what, const std::vector<T>& a,
                                  const std::vector<T>& b) {
    const size_t bytes = a.size() * sizeof(T);
    const bool same = a.size() == b.size() && (bytes == 0 || std::memcmp(a.data(), b.data(), bytes) == 0);
    std::printf("%-22s %-5s %-52s %s\n", kernel.c_str(), Type<T>::name, what.c_str(), same ? "same bits" : "FAILED");
    all_within &= same;
}

// Runs test<T>(arguments…) for every T.
#define FOR_TYPES(test, ...) (test<float>(__VA_ARGS__), test<__half>(__VA_ARGS__), test<__nv_bfloat16>(__VA_ARGS__))
#define FOR_16_BIT_TYPES(test, ...) (test<__half>(__VA_ARGS__), test<__nv_bfloat16>(__VA_ARGS__))

// The process's exit status.
inline int status() { return all_within ? 0 : 1; }

}  // namespace check
