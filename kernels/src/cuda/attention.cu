// Causal attention over a forest of segments with online softmax (FlashAttention-2, arXiv 2307.08691) and f32
// multiplies: for f32, and for the widths of heads that attention_mma.cu has no tile for.
//
// qkv [n, (q_heads + 2 kv_heads) · head_dim] T: a row's queries, keys, values; kept [·, 2 kv_heads · head_dim]: keys,
// values; out [n, q_heads · head_dim]. head_dim is a multiple of 8, at most 256. Grid (tasks, kv_heads), 128 threads.
// A block takes ROWS rows of the task at a time, a warp ROWS / 4 of them. It walks the keys in blocks of absolute
// positions, so that a row's bits do not depend on its task. For the scores a lane is a key, for the outputs it is
// every 32nd element of the head. Dynamic shared memory: 4 · (ROWS · head_dim + KEYS · (head_dim + 4) + ROWS · KEYS)
// bytes.
#include "attention.cuh"

namespace plain {

constexpr int THREADS = 128, ROWS = 32, KEYS = WARP, WARP_ROWS = ROWS / (THREADS / WARP);
constexpr int LANE_ELEMENTS = 256 / WARP;

// Keys or values, by `offset`, of a block of positions as f32; rows without a key are zeros. The distance of rows, an
// odd number of 16 bytes, keeps the lanes' reads apart.
template <class T> __device__ void gather(const Attention<T>& a, int block, int offset, float* tile) {
    const int packs = a.head_dim / PACK<T>;
    for (int i = threadIdx.x; i < KEYS * packs; i += THREADS) {
        const int key = i / packs, column = i % packs * PACK<T>;
        const unsigned row = a.key_row(block + key);
        const Floats<PACK<T>> none{};
        store(tile + key * (a.head_dim + 4) + column,
              row == NO_KEY ? none : load<PACK<T>>(a.key(row) + offset + column));
    }
}

// Answers rows first .. first + ROWS of the task.
template <class T> __device__ void attend(const Attention<T>& a, int first, float* q, float* tile, float* weights) {
    const int d = a.head_dim, count = min(ROWS, a.rows() - first);
    const float scale = rsqrtf(d);
    for (int i = threadIdx.x; i < ROWS * d / PACK<T>; i += THREADS) {
        const int row = i * PACK<T> / d, column = i * PACK<T> % d;
        Floats<PACK<T>> x{};
        if (row < count) x = load<PACK<T>>(a.query(first + row) + column);
#pragma unroll
        for (int j = 0; j < PACK<T>; ++j) x.at[j] *= scale;
        store(q + row * d + column, x);
    }
    const int own = warp_id() * WARP_ROWS;  // the warp's first row
    q += own * d;
    weights += own * KEYS;
    float out[WARP_ROWS][LANE_ELEMENTS] = {}, max[WARP_ROWS], sum[WARP_ROWS] = {};
    int position[WARP_ROWS];
#pragma unroll
    for (int r = 0; r < WARP_ROWS; ++r) {
        max[r] = -INFINITY;
        position[r] = a.position(first + min(own + r, count - 1));
    }

    const int end = a.position(first + count - 1) + 1;
    for (int block = a.first_block(a.position(first), KEYS); block < end; block += KEYS) {
        gather(a, block, 0, tile);
        __syncthreads();
        float score[WARP_ROWS] = {};
#pragma unroll 1  // more at once would not fit into the registers
        for (int i = 0; i < d; i += 4) {
            const Floats<4> k = load<4>(tile + lane_id() * (d + 4) + i);
#pragma unroll
            for (int r = 0; r < WARP_ROWS; ++r) {
                const Floats<4> x = load<4>(q + r * d + i);
#pragma unroll
                for (int j = 0; j < 4; ++j) score[r] += x.at[j] * k.at[j];
            }
        }
#pragma unroll
        for (int r = 0; r < WARP_ROWS; ++r) {
            const float seen = a.sees(position[r], block + lane_id()) ? score[r] : -INFINITY;
            const float high = fmaxf(max[r], warp_max(seen));
            const float shift = high == -INFINITY ? 0.0f : high;  // a row that has seen no key yet
            const float weight = expf(seen - shift), correction = expf(max[r] - shift);
            weights[r * KEYS + lane_id()] = weight;
            sum[r] = sum[r] * correction + weight;  // of this lane's keys
            max[r] = high;
#pragma unroll
            for (int j = 0; j < LANE_ELEMENTS; ++j) out[r][j] *= correction;
        }
        __syncthreads();
        gather(a, block, a.values(), tile);
        __syncthreads();
#pragma unroll 1  // as above
        for (int key = 0; key < KEYS; key += 4) {
            Floats<4> weight[WARP_ROWS];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; ++r) weight[r] = load<4>(weights + r * KEYS + key);
#pragma unroll
            for (int j = 0; j < LANE_ELEMENTS; ++j) {
                const int column = j * WARP + lane_id();
                if (column >= d) break;
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float value = tile[(key + i) * (d + 4) + column];
#pragma unroll
                    for (int r = 0; r < WARP_ROWS; ++r) out[r][j] += weight[r].at[i] * value;
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < WARP_ROWS; ++r) {
        const float norm = 1.0f / warp_sum(sum[r]);
        if (own + r >= count) continue;
        T* to = a.output(first + own + r);
#pragma unroll
        for (int j = 0; j < LANE_ELEMENTS; ++j) {
            const int column = j * WARP + lane_id();
            if (column < d) to[column] = from_float<T>(out[r][j] * norm);
        }
    }
}

template <class T> __device__ void attention(const Attention<T>& a) {
    float* q = dynamic_shared<float>();
    float* tile = q + ROWS * a.head_dim;
    float* weights = tile + KEYS * (a.head_dim + 4);
    for (int first = 0; first < a.rows(); first += ROWS) attend(a, first, q, tile, weights);
}

}  // namespace plain

using plain::attention;
KERNEL(attention, 128, ATTENTION_PARAMETERS, ATTENTION_ARGUMENTS)
