// Causal attention over a forest of segments on tensor cores (FlashAttention-2, arXiv 2307.08691), for f16 and bf16
// and heads of 16, 32, …, 128 elements: f32 scores, online softmax and sums, weights rounded to T for their multiply.
//
// Shapes as in attention.cu. Grid (tasks, kv_heads), THREADS threads. A block takes ROWS rows of the task at a time, a
// warp 16 of them: their queries, scores and outputs stay in its registers. Blocks of KEYS absolute positions are
// copied row by row to shared memory, each while the one before it is used. Dynamic shared memory: sizeof(Shared),
// 512 · (head_dim + 8) + 1024 bytes.
#include "attention.cuh"
#include "mma.cuh"

namespace tensor {

constexpr int THREADS = 256, ROWS = 128, KEYS = 64, WARP_ROWS = ROWS / (THREADS / WARP);
static_assert(WARP_ROWS == 16);  // an mma's rows

__device__ inline unsigned pack(__half2 x) { return *reinterpret_cast<unsigned*>(&x); }
__device__ inline unsigned pack(__nv_bfloat162 x) { return *reinterpret_cast<unsigned*>(&x); }
template <class T> __device__ unsigned pack(float low, float high);
template <> __device__ inline unsigned pack<__half>(float low, float high) {
    return pack(__floats2half2_rn(low, high));
}
template <> __device__ inline unsigned pack<__nv_bfloat16>(float low, float high) {
    return pack(__floats2bfloat162_rn(low, high));
}

// A block of keys and its values, [KEYS, D] each. The distance of rows, an odd number of 16 bytes, spreads a matrix's
// eight over all banks.
template <class T, int D> struct Stage {
    static constexpr int STRIDE = D + 8;
    T keys[KEYS * STRIDE], values[KEYS * STRIDE];
};

template <class T, int D> struct Shared {
    Stage<T, D> stages[2];
    const T* keys[2][KEYS];  // where the keys of the stages' blocks come from
};
static_assert(ROWS <= 2 * KEYS);  // the queries pass through a stage

// Of `count` rows of D elements, each 16 bytes that are this thread's: `each(row, column)`.
template <class T, int D, class Each> __device__ void for_packs(int count, Each each) {
    constexpr int PACKS = D / PACK<T>;
#pragma unroll
    for (int i = 0; i < count * PACKS; i += THREADS) {
        const int at = i + threadIdx.x;
        if (count * PACKS % THREADS == 0 || at < count * PACKS) each(at / PACKS, at % PACKS * PACK<T>);
    }
}

// What a warp keeps of its 16 rows; a lane has rows l/4 and l/4 + 8 and two columns of every eight.
template <int D> struct Rows {
    unsigned q[D / 16][4];
    float out[D / 8][4];
    float high[2], sum[2];  // of the scores as powers of two, and of this lane's weights
    int position[2];
};

// Scores of keys that a row does not see to −∞.
template <class T, int D>
__device__ void mask(const Attention<T>& a, const Rows<D>& rows, float (&s)[KEYS / 8][4], int block) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (int c = 2 * r; c < 2 * r + 2; ++c) {
                const int key = block + j * 8 + lane_id() % 4 * 2 + c % 2;
                if (!a.sees(rows.position[r], key)) s[j][c] = -INFINITY;
            }
        }
    }
}

// Scores to weights; the state moves to the new maxima.
template <int D> __device__ void softmax(Rows<D>& rows, float (&s)[KEYS / 8][4], float scale) {
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float high = fmaxf(s[0][2 * r], s[0][2 * r + 1]);
#pragma unroll
        for (int j = 1; j < KEYS / 8; ++j) high = fmaxf(high, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 1));
        high = fmaxf(high, __shfl_xor_sync(ALL_LANES, high, 2));
        // Rounded once: all weights below one maximum carry the same error of it, which their sum takes out again.
        high = fmaxf(rows.high[r], high * scale);
        const float shift = high == -INFINITY ? 0.0f : high;  // a row that has seen no key yet
        correction[r] = exp2_fast(rows.high[r] - shift);      // exactly 1 where the maximum stays
        rows.high[r] = high;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < KEYS / 8; ++j) {
            float &left = s[j][2 * r], &right = s[j][2 * r + 1];
            left = exp2_fast(fmaf(left, scale, -shift));
            right = exp2_fast(fmaf(right, scale, -shift));
            sum += left + right;
        }
        rows.sum[r] = fmaf(rows.sum[r], correction[r], sum);
    }
    if (!__any_sync(ALL_LANES, correction[0] != 1.0f || correction[1] != 1.0f)) return;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) rows.out[j][c] *= correction[c / 2];
}

// Scores of the warp's rows and the block's keys: mma's b is a key per column.
template <class T, int D>
__device__ void multiply_keys(const Rows<D>& rows, const Stage<T, D>& stage, float (&s)[KEYS / 8][4]) {
    const int matrix = lane_id() / 8;
    const T* keys = stage.keys + (matrix / 2 * 8 + lane_id() % 8) * stage.STRIDE + matrix % 2 * 8;
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
#pragma unroll
        for (int j = 0; j < KEYS / 16; ++j) {
            unsigned b[4];
            ldmatrix_x4(b, keys + j * 16 * stage.STRIDE + i * 16);
            mma_m16n8k16<T>(s[2 * j], rows.q[i], b[0], b[1]);
            mma_m16n8k16<T>(s[2 * j + 1], rows.q[i], b[2], b[3]);
        }
    }
}

// out += weights · values. The scores of two neighbouring mma's lie in the lanes as an mma wants its a.
template <class T, int D>
__device__ void multiply_values(Rows<D>& rows, const Stage<T, D>& stage, const float (&s)[KEYS / 8][4]) {
    const int matrix = lane_id() / 8;
    const T* values = stage.values + (matrix % 2 * 8 + lane_id() % 8) * stage.STRIDE + matrix / 2 * 8;
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
        const float(&left)[4] = s[2 * j], (&right)[4] = s[2 * j + 1];
        const unsigned weights[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]),
                                     pack<T>(right[0], right[1]), pack<T>(right[2], right[3])};
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            unsigned b[4];
            ldmatrix_x4_trans(b, values + j * 16 * stage.STRIDE + i * 16);
            mma_m16n8k16<T>(rows.out[2 * i], weights, b[0], b[1]);
            mma_m16n8k16<T>(rows.out[2 * i + 1], weights, b[2], b[3]);
        }
    }
}

// Answers rows first .. first + ROWS of the task.
template <class T, int D> __device__ void attend(const Attention<T>& a, int first, Shared<T, D>& shared) {
    constexpr int STRIDE = Stage<T, D>::STRIDE;
    const int count = min(ROWS, a.rows() - first), own = warp_id() * WARP_ROWS;
    const float scale = 1.4426950408889634f * rsqrtf(D);  // for powers of two
    Rows<D> rows{};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        rows.position[r] = a.position(first + min(own + lane_id() / 4 + 8 * r, count - 1));
        rows.high[r] = -INFINITY;
    }
    // Of this warp's rows: the first position, and the last, before all keys where it has none.
    const int low = a.position(first + min(own, count - 1));
    const int last = own < count ? a.position(first + min(own + WARP_ROWS, count) - 1) : -1;
    const int end = a.position(first + count - 1) + 1;
    int block = a.first_block(a.position(first), KEYS);

    // Beyond the last key, that one again: no row that it is copied for sees it there.
    const auto find = [&](int stage, int block) {
        if (threadIdx.x < KEYS) {
            const int key = min(block + int(threadIdx.x), a.end() - 1);
            shared.keys[stage][threadIdx.x] = a.key(a.key_row(key));
        }
    };
    const auto fetch = [&](int stage) {
        T *keys = shared.stages[stage].keys, *values = shared.stages[stage].values;
        for_packs<T, D>(KEYS, [&](int row, int column) {
            const T* from = shared.keys[stage][row] + column;
            cp_async_16(keys + row * STRIDE + column, from, true);
            cp_async_16(values + row * STRIDE + column, from + a.values(), true);
        });
        cp_async_commit();
    };

    T* queries = shared.stages[1].keys;
    for_packs<T, D>(ROWS, [&](int row, int column) {
        cp_async_16(queries + row * STRIDE + column, a.query(first + min(row, count - 1)) + column, true);
    });
    cp_async_commit();
    find(0, block);
    find(1, block + KEYS);
    cp_async_wait<0>();
    __syncthreads();  // the queries are here, and so is where the keys are
    fetch(0);
#pragma unroll
    for (int i = 0; i < D / 16; ++i)
        ldmatrix_x4(rows.q[i], queries + (own + lane_id() % 16) * STRIDE + i * 16 + lane_id() / 16 * 8);

    for (int stage = 0; block < end; block += KEYS, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // the block is here, and no warp reads the one before it any more
        if (block + KEYS < end) fetch(stage ^ 1);
        find(stage, block + 2 * KEYS);
        if (block > last) continue;
        float s[KEYS / 8][4] = {};
        multiply_keys(rows, shared.stages[stage], s);
        if (a.window > 0 || block + KEYS - 1 > low) mask(a, rows, s, block);
        softmax(rows, s, scale);
        multiply_values(rows, shared.stages[stage], s);
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
    for (int first = 0; first < a.rows(); first += ROWS) {
        if (first > 0) __syncthreads();  // no warp reads the keys of the rows before
        attend(a, first, *dynamic_shared<Shared<T, D>>());
    }
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
KERNEL_16_BIT(attention_mma, tensor::THREADS, ATTENTION_PARAMETERS, ATTENTION_ARGUMENTS)
