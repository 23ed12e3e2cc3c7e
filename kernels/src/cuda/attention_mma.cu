// Causal attention over a forest of segments on tensor cores (FlashAttention-2, arXiv 2307.08691), for f16 and bf16
// and heads of 16, 32, …, 128 elements: f32 scores, online softmax and sums, weights rounded to T for their multiply.
//
// Shapes as in attention.cu. Grid (tasks, kv_heads), THREADS threads. A block takes ROWS rows of the task at a time, a
// warp 16 of them: their queries, scores and outputs stay in its registers. Blocks of KEYS absolute positions are
// copied row by row to shared memory, each while the one before it is used. Dynamic shared memory: sizeof(Shared),
// 512 · (head_dim + 8) + 1024 bytes.
#include "attention_rows.cuh"
#include "mma.cuh"

namespace tensor {

constexpr int THREADS = 256, ROWS = 128, KEYS = 64;
static_assert(WARP_ROWS == ROWS / (THREADS / WARP));

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

// out += weights · values.
template <class T, int D>
__device__ void multiply_values(Rows<D>& rows, const Stage<T, D>& stage, const float (&s)[KEYS / 8][4]) {
    const int matrix = lane_id() / 8;
    unsigned weights[KEYS / 16][4];
    as_operand<T>(weights, s);
    const T* values = stage.values + (matrix % 2 * 8 + lane_id() % 8) * stage.STRIDE + matrix / 2 * 8;
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            unsigned b[4];
            ldmatrix_x4_trans(b, values + j * 16 * stage.STRIDE + i * 16);
            mma_m16n8k16<T>(rows.out[2 * i], weights[j], b[0], b[1]);
            mma_m16n8k16<T>(rows.out[2 * i + 1], weights[j], b[2], b[3]);
        }
    }
}

// Answers rows first .. first + ROWS of the task.
template <class T, int D> __device__ void attend(const Attention<T>& a, int first, Shared<T, D>& shared) {
    constexpr int STRIDE = Stage<T, D>::STRIDE;
    const int count = min(ROWS, a.rows() - first), own = warp_id() * WARP_ROWS;
    const float scale = score_scale<D>();
    Rows<D> rows(a, first, own, count);
    // The last position of this warp's rows, before all keys where it has none.
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
        mask(a, rows, s, block);
        float correction[2];
        softmax(rows, s, scale, correction);
        correct(rows, correction);
        multiply_values(rows, shared.stages[stage], s);
    }
    write(a, rows, first, own, count);
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
