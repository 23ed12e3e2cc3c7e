// Logits as a multiply on the tensor cores leaves them: 16 rows by 8 · TILES columns over the lanes of a warp.
//
// logits[j][2h + k] is row lane / 4 + 8h, column 8j + 2 (lane mod 4) + k: the accumulator of mma.m16n8k16, TILES of
// them side by side, and of a warp's part of wgmma.m64nNk16 (PTX ISA, "Matrix fragments"). So the four lanes of a
// quad share a row.
#pragma once
#include "row_state.cuh"

constexpr int QUAD = 4;  // lanes that share a row

__device__ inline int fragment_row(int half) { return lane_id() / QUAD + 8 * half; }
__device__ inline int fragment_column(int j, int k) { return 8 * j + lane_id() % QUAD * 2 + k; }

// The first `count` columns are vocabulary, the others are not there.
template <int TILES> __device__ void mask(float (&logits)[TILES][4], int count) {
#pragma unroll
    for (int j = 0; j < TILES; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (fragment_column(j, i % 2) >= count) logits[j][i] = NEVER;
}

// The sums of a row over these columns, for each lane of its quad.
template <int TILES> __device__ Sums summarize_row(const float (&logits)[TILES][4], int half) {
    return summarize<2 * TILES, QUAD>([&](int i) { return logits[i / 2][2 * half + i % 2]; });
}

// A row's logit at a column, for the lane that holds it; NEVER for others, and where the column is not one of these.
template <int TILES> __device__ float logit_at(const float (&logits)[TILES][4], int half, unsigned column) {
    float logit = NEVER;
    if (column < 8 * TILES) {  // seldom: a row has one target in the whole vocabulary
        const int own = int(column) - fragment_column(0, 0);
#pragma unroll
        for (int i = 0; i < 2 * TILES; ++i)
            if (i / 2 * 8 + i % 2 == own) logit = logits[i / 2][2 * half + i % 2];
    }
    return logit;
}
