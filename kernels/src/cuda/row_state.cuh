// What a row's logits come to, so far: the maximum, Σ e^{z−max}, Σ e^{z−max}(z−max), and the target's logit once it was seen.
//
// From it logit, logsumexp, maximum and entropy follow without the logits themselves. Sums of a few dozen logits are f32;
// states are merged in f64. This is the online softmax (Milakov and Gimelshein, 2018) with one more moment.
#pragma once
#include "common.cuh"

constexpr float NEVER = -INFINITY;          // the logit of no column
constexpr unsigned NO_TARGET = 0xffffffff;  // the target of no row: it is in no tile

struct RowState {
    float max, target;
    double sum, moment;
};

constexpr RowState EMPTY{NEVER, NEVER, 0.0, 0.0};

// Both together. The side of the larger maximum keeps its sums as they are; an empty side changes nothing.
__device__ inline RowState merge(RowState a, RowState b) {
    const float target = fmaxf(a.target, b.target);
    if (a.max < b.max) {
        const RowState swap = a;
        a = b;
        b = swap;
    }
    if (b.sum > 0.0) {
        const float shift = b.max - a.max;
        const double factor = expf(shift);
        a.sum += factor * b.sum;
        a.moment += factor * (b.moment + shift * b.sum);
    }
    a.target = target;
    return a;
}

// e^x for x ≤ 0, 0 where that is below the smallest normal number. One instruction and a multiply.
__device__ inline float exp_fast(float x) {
    constexpr float LOG2_E = 1.44269504f;
#ifdef __CUDA_ARCH__
    float e;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * LOG2_E));
    return e;
#else
    const float e = exp2f(x * LOG2_E);
    return e < 0x1p-126f ? 0.0f : e;
#endif
}

// The state of COUNT logits, `logit(i)`, in each of LANES neighbouring lanes together; every one of the lanes gets it. A
// logit of −∞ is not there.
template <int COUNT, int LANES, class Logit> __device__ RowState summarize(Logit logit) {
    float max = logit(0);
#pragma unroll
    for (int i = 1; i < COUNT; ++i) max = fmaxf(max, logit(i));
#pragma unroll
    for (int lane = 1; lane < LANES; lane *= 2) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, lane));

    float sum = 0.0f, moment = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        // e^-128 is 0 already, and 0 · −∞ has no place in a moment; nor has the NaN of −∞ − (−∞), where none is there.
        const float shifted = fmaxf(logit(i) - max, -128.0f);
        const float e = exp_fast(shifted);
        sum += e;
        moment = fmaf(e, shifted, moment);
    }
#pragma unroll
    for (int lane = 1; lane < LANES; lane *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        moment += __shfl_xor_sync(ALL_LANES, moment, lane);
    }
    return {max, NEVER, sum, moment};
}
