// What a warp of the attention kernels on tensor cores keeps of its 16 rows, and the online softmax between their two
// multiplies (FlashAttention-2, arXiv 2307.08691). Scores and outputs lie in the lanes as mma.m16n8k16 leaves its
// sums, and wgmma a warp's part of its own: a lane has rows l/4 and l/4 + 8 and two columns of every eight.
#pragma once
#include "attention.cuh"

constexpr int WARP_ROWS = 16;

template <int D> struct Rows {
    unsigned q[D / 16][4];
    float out[D / 8][4];
    float high[2], sum[2];  // of the scores as powers of two, and of this lane's weights
    int position[2];
    int low;  // the first position of the warp

    // Rows first + own .. of a task of which `count` from `first` on are there; those behind are the last one again.
    template <class T> __device__ Rows(const Attention<T>& a, int first, int own, int count) : out{} {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            position[r] = a.position(first + min(own + lane_id() / 4 + 8 * r, count - 1));
            high[r] = -INFINITY;
            sum[r] = 0.0f;
        }
        low = a.position(first + min(own, count - 1));
    }
};

// Scores of the keys from `block` on that a row does not see to −∞.
template <class T, int D, int TILES>
__device__ void mask(const Attention<T>& a, const Rows<D>& rows, float (&s)[TILES][4], int block) {
    if (a.window <= 0 && block + 8 * TILES - 1 <= rows.low) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
#pragma unroll
            for (int c = 2 * r; c < 2 * r + 2; ++c) {
                const int key = block + j * 8 + lane_id() % 4 * 2 + c % 2;
                if (!a.sees(rows.position[r], key)) s[j][c] = -INFINITY;
            }
        }
    }
}

// Scores to weights; the state moves to the new maxima, the outputs have yet to be corrected for it. `scale` is that
// of the scores as powers of two.
template <int D, int TILES>
__device__ void softmax(Rows<D>& rows, float (&s)[TILES][4], float scale, float (&correction)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float high = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
        for (int j = 1; j < TILES; ++j) high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
        // Rounded once: all weights below one maximum carry the same error of it, which their sum takes out again.
        high = fmaxf(rows.high[r], high * scale);
        const float shift = high == -INFINITY ? 0.0f : high;  // a row that has seen no key yet
        correction[r] = exp2_fast(rows.high[r] - shift);      // exactly 1 where the maximum stays
        rows.high[r] = high;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < TILES; ++j) {
            float &left = s[j][2 * r], &right = s[j][2 * r + 1];
            left = exp2_fast(fmaf(left, scale, -shift));
            right = exp2_fast(fmaf(right, scale, -shift));
            sum += left + right;
        }
        rows.sum[r] = fmaf(rows.sum[r], correction[r], sum);
    }
}

template <int D> __device__ void correct(Rows<D>& rows, const float (&correction)[2]) {
    if (!__any_sync(ALL_LANES, correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) rows.out[j][c] *= correction[c / 2];
}

__device__ inline unsigned pack(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }
__device__ inline unsigned pack(__nv_bfloat162 x) { return *reinterpret_cast<unsigned*>(&x); }
template <class T> __device__ unsigned pack(float low, float high);
template <> __device__ inline unsigned pack<__half>(float low, float high) {
    return pack(__floats2half2_rn(low, high));
}
template <> __device__ inline unsigned pack<__nv_bfloat16>(float low, float high) {
    return pack(__floats2bfloat162_rn(low, high));
}

// Weights as a multiply's left operand, 16 keys each: they lie in the lanes as it wants them.
template <class T, int TILES> __device__ void as_operand(unsigned (&a)[TILES / 2][4], const float (&s)[TILES][4]) {
#pragma unroll
    for (int j = 0; j < TILES / 2; ++j) {
        const float(&left)[4] = s[2 * j], (&right)[4] = s[2 * j + 1];
        a[j][0] = pack<T>(left[0], left[1]);
        a[j][1] = pack<T>(left[2], left[3]);
        a[j][2] = pack<T>(right[0], right[1]);
        a[j][3] = pack<T>(right[2], right[3]);
    }
}

// Writes the outputs of the rows that are there.
template <class T, int D>
__device__ void write(const Attention<T>& a, const Rows<D>& rows, int first, int own, int count) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float sum = rows.sum[r];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        const int row = own + lane_id() / 4 + 8 * r;
        if (row >= count) continue;
        const float norm = 1.0f / sum;
        T* to = a.output(first + row) + lane_id() % 4 * 2;
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            const float* x = &rows.out[j][2 * r];
            store(to + j * 8, Floats<2>{x[0] * norm, x[1] * norm});
        }
    }
}

// For scores as powers of two.
template <int D> __device__ float score_scale() { return 1.4426950408889634f * rsqrtf(D); }
