// Rotary position embedding (RoFormer, arXiv 2104.09864; half-split pairs as in Hugging Face) of queries and keys in
// place, after Qwen3's RMSNorm of each head where its weights are given.
//
// Element i of a head's first half pairs with element i of its second: (a, b) becomes (a cos − b sin, b cos + a sin).
// qkv [n, (q_heads + 2 kv_heads) · head_dim] T, cos and sin [positions, head_dim / 2] f32, norms [head_dim] f32. Grid
// (n, blocks that share a row). A warp takes a head, a lane two pairs at a time: 32 lanes then cover a head of 128.
#include "common.cuh"

template <int W, class T>
__device__ void rotate_head(T* head, const float* cos, const float* sin, const float* norm, float eps, int half) {
    float scale = 1.0f;
    if (norm) {
        float squares = 0.0f;
        for (int i = lane_id() * W; i < half; i += WARP * W) {
            const Floats<W> a = load<W>(head + i), b = load<W>(head + half + i);
#pragma unroll
            for (int j = 0; j < W; ++j) squares += a.at[j] * a.at[j] + b.at[j] * b.at[j];
        }
        scale = rsqrtf(warp_sum(squares) / (2 * half) + eps);
    }
    for (int i = lane_id() * W; i < half; i += WARP * W) {
        Floats<W> a = load<W>(head + i), b = load<W>(head + half + i);
        const Floats<W> c = load<W>(cos + i), s = load<W>(sin + i);
        if (norm) {
            const Floats<W> wa = load<W>(norm + i), wb = load<W>(norm + half + i);
#pragma unroll
            for (int j = 0; j < W; ++j) {
                a.at[j] *= scale * wa.at[j];
                b.at[j] *= scale * wb.at[j];
            }
        }
        Floats<W> x, y;
#pragma unroll
        for (int j = 0; j < W; ++j) {
            x.at[j] = a.at[j] * c.at[j] - b.at[j] * s.at[j];
            y.at[j] = b.at[j] * c.at[j] + a.at[j] * s.at[j];
        }
        store(head + i, x);
        store(head + half + i, y);
    }
}

template <class T>
__device__ void rope(T* qkv, const unsigned* positions, const float* cos, const float* sin, const float* q_norm,
                     const float* k_norm, float eps, int n, int q_heads, int kv_heads, int head_dim) {
    const int row = blockIdx.x, half = head_dim / 2;
    if (row >= n) return;
    qkv += size_t(row) * (q_heads + 2 * kv_heads) * head_dim;
    cos += size_t(positions[row]) * half;
    sin += size_t(positions[row]) * half;
    const int warps = blockDim.x / WARP;
    for (int h = blockIdx.y * warps + warp_id(); h < q_heads + kv_heads; h += gridDim.y * warps) {
        const float* norm = h < q_heads ? q_norm : k_norm;
        T* head = qkv + size_t(h) * head_dim;
        if (half % 2 == 0) {
            rotate_head<2>(head, cos, sin, norm, eps, half);
        } else {
            rotate_head<1>(head, cos, sin, norm, eps, half);
        }
    }
}

KERNEL(rope, 256,
       (T* qkv, const unsigned* positions, const float* cos, const float* sin, const float* q_norm,
        const float* k_norm, float eps, int n, int q_heads, int kv_heads, int head_dim),
       (qkv, positions, cos, sin, q_norm, k_norm, eps, n, q_heads, kv_heads, head_dim))
