// Causal attention over a forest of segments on tensor cores (FlashAttention-2, arXiv 2307.08691), for f16 and bf16
// and heads of 16, 32, …, 128 elements: f32 scores, online softmax and sums, weights rounded to T for their multiply.
//
// Shapes as in attention.cu. Grid (tasks, kv_heads), 128 threads. A block takes ROWS rows of the task at a time, a
// warp 16 of them: their queries, scores and outputs stay in its registers. Blocks of KEYS absolute positions are
// copied row by row to shared memory: the values while the scores are made, the next keys while the values are used.
// Dynamic shared memory: 4 · KEYS · (head_dim + 8) + 8 · KEYS bytes.
#include "attention.cuh"
#include "mma.cuh"

namespace tensor {

constexpr int THREADS = 128, ROWS = 64, KEYS = 64, WARP_ROWS = ROWS / (THREADS / WARP);
static_assert(WARP_ROWS == 16 && ROWS == KEYS);  // an mma's rows; the queries pass through the keys' tile

__device__ inline unsigned pack(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }
__device__ inline unsigned pack(__nv_bfloat162 x) { return *reinterpret_cast<unsigned*>(&x); }
template <class T> __device__ unsigned pack(float low, float high);
template <> __device__ inline unsigned pack<__half>(float low, float high) {
    return pack(__floats2half2_rn(low, high));
}
template <> __device__ inline unsigned pack<__nv_bfloat16>(float low, float high) {
    return pack(__floats2bfloat162_rn(low, high));
}

// [KEYS, D] T in shared memory. The distance of rows, an odd number of 16 bytes, spreads a matrix's eight over all
// banks.
template <class T, int D> struct Tile {
    static constexpr int STRIDE = D + 8;
    T at[KEYS * STRIDE];

    // Starts to copy rows, each from where `source(row)` says; zeros where that is null.
    template <class Source> __device__ void fill(const T* any, Source source) {
        constexpr int PACKS = D / PACK<T>;
#pragma unroll
        for (int i = threadIdx.x; i < KEYS * PACKS; i += THREADS) {
            const int row = i / PACKS, column = i % PACKS * PACK<T>;
            const T* from = source(row);
            cp_async_16(at + row * STRIDE + column, (from ? from : any) + column, from != nullptr);
        }
        cp_async_commit();
    }
    __device__ const T* row(int row, int column) const { return at + row * STRIDE + column; }
};

template <class T, int D> struct Shared {
    Tile<T, D> keys, values;
    unsigned rows[2][KEYS];  // of the keys of this block and of the next
};

// What a warp keeps of its 16 rows; a lane has rows l/4 and l/4 + 8 and two columns of every eight.
template <int D> struct Rows {
    unsigned q[D / 16][4];
    float out[D / 8][4], max[2], sum[2];
    int position[2];
};

// Scores of the block's keys to weights; the state moves to the new maxima.
template <class T, int D>
__device__ void softmax(const Attention<T>& a, Rows<D>& rows, float (&s)[KEYS / 8][4], int block, float scale) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        if (a.window > 0 || block + KEYS - 1 > rows.position[r]) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
                for (int c = 2 * r; c < 2 * r + 2; ++c) {
                    const int key = block + j * 8 + lane_id() % 4 * 2 + c % 2;
                    if (!a.sees(rows.position[r], key)) s[j][c] = -INFINITY;
                }
            }
        }
        float high = rows.max[r];
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
        const float shift = high == -INFINITY ? 0.0f : high;  // a row that has seen no key yet
        // The difference first: it is exactly 0 where the maximum stays, which a fused multiply-add would not give.
        const float correction = exp2f((rows.max[r] - shift) * scale);
        rows.max[r] = high;
        rows.sum[r] *= correction;  // of this lane's keys
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (int c = 2 * r; c < 2 * r + 2; ++c) {
                s[j][c] = exp2f((s[j][c] - shift) * scale);
                rows.sum[r] += s[j][c];
            }
        }
#pragma unroll
        for (int j = 0; j < D / 8; ++j) {
            rows.out[j][2 * r] *= correction;
            rows.out[j][2 * r + 1] *= correction;
        }
    }
}

// Scores of the warp's rows and the block's keys: mma's b is a key per column.
template <class T, int D>
__device__ void multiply_keys(const Rows<D>& rows, const Tile<T, D>& keys, float (&s)[KEYS / 8][4]) {
    const int matrix = lane_id() / 8;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
#pragma unroll
        for (int j = 0; j < KEYS / 16; ++j) {
            unsigned b[4];
            ldmatrix_x4(b, keys.row(j * 16 + matrix / 2 * 8 + lane_id() % 8, i * 16 + matrix % 2 * 8));
            mma_m16n8k16<T>(s[2 * j], rows.q[i], b[0], b[1]);
            mma_m16n8k16<T>(s[2 * j + 1], rows.q[i], b[2], b[3]);
        }
    }
}

// out += weights · values. The scores of two neighbouring mma's lie in the lanes as an mma wants its a.
template <class T, int D>
__device__ void multiply_values(Rows<D>& rows, const Tile<T, D>& values, const float (&s)[KEYS / 8][4]) {
    const int matrix = lane_id() / 8;
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
        const float(&left)[4] = s[2 * j], (&right)[4] = s[2 * j + 1];
        const unsigned weights[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]),
                                     pack<T>(right[0], right[1]), pack<T>(right[2], right[3])};
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            unsigned b[4];
            ldmatrix_x4_trans(b, values.row(j * 16 + matrix % 2 * 8 + lane_id() % 8, i * 16 + matrix / 2 * 8));
            mma_m16n8k16<T>(rows.out[2 * i], weights, b[0], b[1]);
            mma_m16n8k16<T>(rows.out[2 * i + 1], weights, b[2], b[3]);
        }
    }
}

// Answers rows first .. first + ROWS of the task.
template <class T, int D> __device__ void attend(const Attention<T>& a, int first, Shared<T, D>& shared) {
    const int count = min(ROWS, a.rows() - first), own = warp_id() * WARP_ROWS;
    const float scale = 1.4426950408889634f * rsqrtf(D);  // for powers of two
    Rows<D> rows{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.position[r] = a.position(first + min(own + lane_id() / 4 + 8 * r, count - 1));
        rows.max[r] = -INFINITY;
    }
    const int last = own < count ? a.position(first + min(own + WARP_ROWS, count) - 1) : -1;  // of this warp
    const int end = a.position(first + count - 1) + 1;
    int block = a.first_block(a.position(first), KEYS);

    shared.keys.fill(a.qkv, [&](int row) { return row < count ? a.query(first + row) : nullptr; });
    if (threadIdx.x < KEYS) shared.rows[0][threadIdx.x] = a.key_row(block + threadIdx.x);
    cp_async_wait<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
        ldmatrix_x4(rows.q[i], shared.keys.row(own + lane_id() % 16, i * 16 + lane_id() / 16 * 8));
    __syncthreads();

    const auto fill = [&](Tile<T, D>& tile, int parity, int offset) {
        tile.fill(a.qkv, [&](int key) {
            const unsigned row = shared.rows[parity][key];
            return row == NO_KEY ? nullptr : a.key(row) + offset;
        });
    };
    fill(shared.keys, 0, 0);
    for (int parity = 0; block < end; block += KEYS, parity ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the keys are here, and no warp reads the values before them any more
        fill(shared.values, parity, a.values());
        if (threadIdx.x < KEYS) shared.rows[parity ^ 1][threadIdx.x] = a.key_row(block + KEYS + threadIdx.x);
        float s[KEYS / 8][4] = {};
        if (block <= last) {
            multiply_keys(rows, shared.keys, s);
            softmax(a, rows, s, block, scale);
        }
        cp_async_wait<0>();
        __syncthreads();  // the values are here, and no warp reads the keys any more
        if (block + KEYS < end) fill(shared.keys, parity ^ 1, 0);
        if (block <= last) multiply_values(rows, shared.values, s);
    }

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

template <class T, int D> __device__ void attend_all(const Attention<T>& a) {
    for (int first = 0; first < a.rows(); first += ROWS) attend(a, first, *dynamic_shared<Shared<T, D>>());
}

template <class T> __device__ void attention_mma(const Attention<T>& a) {
    switch (a.head_dim) {
        case 16: return attend_all<T, 16>(a);
        case 32: return attend_all<T, 32>(a);
        case 48: return attend_all<T, 48>(a);
        case 64: return attend_all<T, 64>(a);
        case 80: return attend_all<T, 80>(a);
        case 96: return attend_all<T, 96>(a);
        case 112: return attend_all<T, 112>(a);
        case 128: return attend_all<T, 128>(a);
    }
}

}  // namespace tensor

using tensor::attention_mma;
KERNEL_16_BIT(attention_mma, 128, ATTENTION_PARAMETERS, ATTENTION_ARGUMENTS)
