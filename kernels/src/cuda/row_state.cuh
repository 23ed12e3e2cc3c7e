// What a row's logits come to, so far: the maximum, Σ e^{z−max}, Σ e^{z−max}(z−max), and the target's logit once it
// was seen. From it logit, logsumexp, maximum and entropy follow without the logits themselves.
//
// This is the online softmax (Milakov and Gimelshein, 2018) with one more moment. A block's own sums are f32: a logit
// goes through a few dozen additions there. What leaves it, RowState, is merged in f64.
#pragma once
#include "common.cuh"

constexpr float NEVER = -INFINITY;          // the logit of no column
constexpr unsigned NO_TARGET = 0xffffffff;  // the target of no row: it is in no tile

// Of some logits, within a block.
struct Sums {
    float max, sum, moment;
};

struct RowState {
    float max, target;
    double sum, moment;
};

constexpr Sums NO_LOGITS{NEVER, 0, 0};

__device__ inline RowState row_state(const Sums& s, float target) { return {s.max, target, s.sum, s.moment}; }

// The sums of both together. The side of the larger maximum keeps its own; an empty side changes nothing, one whose
// sum is not a number makes the other's so.
template <class State> __device__ State merge_sums(const State& a, const State& b) {
    State high = a, low = b;
    if (a.max < b.max) {
        high = b;
        low = a;
    }
    if (low.sum != 0) {
        const float shift = low.max - high.max;
        const decltype(low.sum) factor = expf(shift);
        high.sum += factor * low.sum;
        high.moment += factor * (low.moment + shift * low.sum);
    }
    return high;
}

__device__ inline RowState merge(const RowState& a, const RowState& b) {
    RowState both = merge_sums(a, b);
    both.target = fmaxf(a.target, b.target);
    return both;
}

// x, lifted to `low` where rounding left it below; what is not a number stays so.
__device__ inline float at_least(float low, float x) { return x < low ? low : x; }

// e^x for x ≤ 0, 0 where that is below the smallest normal number. One instruction and a multiply.
__device__ inline float exp_fast(float x) { return exp2_fast(x * 1.44269504f); }

// The sums of COUNT logits, `logit(i)`, in each of LANES neighbouring lanes together; every one of the lanes gets
// it. A logit of −∞ is not there; one that is not a number makes the sum so.
template <int COUNT, int LANES, class Logit> __device__ Sums summarize(Logit logit) {
    float max = logit(0);
#pragma unroll
    for (int i = 1; i < COUNT; ++i) max = fmaxf(max, logit(i));
#pragma unroll
    for (int lane = 1; lane < LANES; lane *= 2) max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, lane));

    const float from = max == NEVER ? 0.0f : max;  // where none is there, −∞ − (−∞) is no number
    float sum = 0.0f, moment = 0.0f;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
        const float shifted = logit(i) - from;
        const float e = exp_fast(shifted);
        sum += e;
        moment = fmaf(e, fmaxf(shifted, -128.0f), moment);  // e^-128 is 0 already, 0 · −∞ has no place in a moment
    }
#pragma unroll
    for (int lane = 1; lane < LANES; lane *= 2) {
        sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        moment += __shfl_xor_sync(ALL_LANES, moment, lane);
    }
    return {max, sum, moment};
}
