// Form (b) of token_reward: hidden × weightᵀ on the tensor cores, and the logits reduced where they come out, in
// registers.
//
// hidden [n, d] and weight [vocabulary, d] T, d a multiple of 8, as copies are of 16 aligned bytes; partials [splits,
// n]. A block: ROWS rows, the columns of one split, COLUMNS at a time. Each of its 8 warps multiplies 64 rows by 64
// columns, DEPTH elements of d at a time, which come by cp.async, STAGES in a ring; the ring runs on across tiles of
// columns, so that copies go on while logits are reduced. Grid as in split.cuh, THREADS threads, sizeof(Shared) bytes
// of shared memory.
#include "fragment.cuh"
#include "mma.cuh"
#include "split.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = 128, COLUMNS = 256, DEPTH = 32, STAGES = 4;
constexpr int WARP_TILE = 64, WARPS_ALONG = COLUMNS / WARP_TILE;
static_assert(ROWS / WARP_TILE * WARPS_ALONG * WARP == THREADS && SPLIT % COLUMNS == 0 && WARP_TILE / 16 == QUAD);

template <class T> struct Shared {
    T hidden[STAGES][ROWS * DEPTH];
    T weight[STAGES][COLUMNS * DEPTH];
    unsigned targets[ROWS];
    float logits[ROWS];  // of the targets; a row's is written once, by the lane that meets it
};
static_assert(sizeof(Shared<__half>) <= 99 << 10);  // what a block can have on sm_86 and sm_89

// Where a chunk of 8 elements of a tile's row lies. Rows are 64 bytes, two of them as wide as all banks: mixed so,
// the 8 rows that ldmatrix reads at once are in different banks, as are the 8 chunks that cp.async writes.
__device__ inline int chunk_at(int row, int chunk) { return row * DEPTH + (chunk ^ (row / 2 % 4)) * 8; }

// Starts to copy COUNT rows from row `first` on, DEPTH elements from `depth` on; zeros for what is outside [rows, d].
template <int COUNT, class T>
__device__ void copy_tile(T* to, const T* from, int first, int rows, int depth, int d) {
    constexpr int CHUNKS = DEPTH / 8;
    const int chunk = threadIdx.x % CHUNKS, column = depth + chunk * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i += THREADS / CHUNKS) {
        const int row = i + threadIdx.x / CHUNKS;
        const bool present = first + row < rows && column < d;
        cp_async_16(to + chunk_at(row, chunk), from + size_t(first + row) * d + column, present);
    }
}

// What a warp multiplies at a time: 64 rows and 64 columns, 16 deep.
struct Fragments {
    unsigned hidden[WARP_TILE / 16][4], weight[WARP_TILE / 16][4];

    // Of the warp's row and column in the tile, at depth 0 or 16: that is chunk 2 further, so bit 4 of where it lies.
    template <class T> __device__ void load(const Shared<T>& shared, unsigned stage, int row, int column, int depth) {
        const int lane = lane_id();
        const int a = chunk_at(row + lane % 16, lane / 16) ^ depth;
        const int b = chunk_at(column + lane / 16 * 8 + lane % 8, lane / 8 % 2) ^ depth;
#pragma unroll
        for (int i = 0; i < WARP_TILE / 16; ++i) {
            ldmatrix_x4(hidden[i], shared.hidden[stage] + a + i * 16 * DEPTH);
            ldmatrix_x4(weight[i], shared.weight[stage] + b + i * 16 * DEPTH);
        }
    }

    template <class T> __device__ void multiply(float (&logits)[WARP_TILE / 16][WARP_TILE / 8][4]) const {
#pragma unroll
        for (int i = 0; i < WARP_TILE / 16; ++i) {
#pragma unroll
            for (int j = 0; j < WARP_TILE / 8; ++j) {
                const unsigned* b = weight[j / 2] + j % 2 * 2;
                mma_m16n8k16<T>(logits[i][j], hidden[i], b[0], b[1]);
            }
        }
    }
};

// Takes in the logits of a warp's rows and of `columns` columns, the first of which is `first`. Of the 16-row
// fragments, each lane of a quad keeps the sums of one.
template <class T>
__device__ void reduce(float (&logits)[WARP_TILE / 16][WARP_TILE / 8][4], int row, int first, int columns,
                       Shared<T>& shared, Sums (&sums)[2]) {
#pragma unroll
    for (int i = 0; i < WARP_TILE / 16; ++i) {
        if (columns < WARP_TILE) mask(logits[i], columns);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int mine = row + i * 16 + fragment_row(half);
            const float target = logit_at(logits[i], half, shared.targets[mine] - first);
            if (target != NEVER) shared.logits[mine] = target;
            const Sums seen = summarize_row(logits[i], half);
            if (lane_id() % QUAD == i) sums[half] = merge_sums(sums[half], seen);
        }
    }
}

template <class T>
__device__ void token_reward_mma(const T* hidden, const T* weight, const unsigned* targets, RowState* partials, int n,
                                 int vocabulary, int d) {
    auto& shared = *dynamic_shared<Shared<T>>();
    const Split split(vocabulary);
    const int block_row = first_row(ROWS);
    if (block_row >= n) return;
    const int row = warp_id() / WARPS_ALONG * WARP_TILE, along = warp_id() % WARPS_ALONG, column = along * WARP_TILE;
    const int mine = threadIdx.x;  // a thread's row where each has one
    if (mine < ROWS) {
        shared.targets[mine] = block_row + mine < n ? targets[block_row + mine] : NO_TARGET;
        shared.logits[mine] = NEVER;
    }

    // What is copied next. Behind the last tile, zeros: a branch would part multiplies that the copies' arithmetic
    // goes on between.
    int next_column = split.begin, next_depth = 0;
    const auto copy_next = [&](unsigned stage) {
        copy_tile<ROWS>(shared.hidden[stage], hidden, block_row, next_column < split.end ? n : 0, next_depth, d);
        copy_tile<COLUMNS>(shared.weight[stage], weight, next_column, split.end, next_depth, d);
        cp_async_commit();
        next_depth += DEPTH;
        if (next_depth >= d) next_depth = 0, next_column += COLUMNS;
    };
    for (int i = 0; i < STAGES - 1; ++i) copy_next(i);
    cp_async_wait<STAGES - 2>();
    __syncthreads();

    unsigned stage = 0;
    Fragments now, next;
    now.load(shared, stage, row, column, 0);
    Sums sums[2] = {NO_LOGITS, NO_LOGITS};
    for (int tile = split.begin; tile < split.end; tile += COLUMNS) {
        float logits[WARP_TILE / 16][WARP_TILE / 8][4] = {};
        for (int depth = 0; depth < d; depth += DEPTH) {
            next.load(shared, stage, row, column, 16);
            copy_next((stage + STAGES - 1) % STAGES);  // over the one before
            now.multiply<T>(logits);
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // the next stage is there, and no warp reads this one any more
            stage = (stage + 1) % STAGES;
            now.load(shared, stage, row, column, 0);
            next.multiply<T>(logits);
        }
        reduce(logits, row, tile + column, split.end - tile - column, shared, sums);
    }

    // The warps of a row of them, in ascending order of columns, by way of the ring.
    cp_async_wait<0>();
    __syncthreads();
    auto* over = reinterpret_cast<Sums(*)[ROWS]>(&shared);
    static_assert(sizeof(Sums[WARPS_ALONG][ROWS]) <= sizeof(shared.hidden));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        over[along][row + lane_id() % QUAD * 16 + fragment_row(half)] = sums[half];
    }
    __syncthreads();
    if (mine >= ROWS || block_row + mine >= n) return;
    Sums all = over[0][mine];
    for (int w = 1; w < WARPS_ALONG; ++w) all = merge_sums(all, over[w][mine]);
    partials[size_t(split.index) * n + block_row + mine] = row_state(all, shared.logits[mine]);
}

KERNEL_16_BIT(token_reward_mma, THREADS,
              (const T* hidden, const T* weight, const unsigned* targets, RowState* partials, int n, int vocabulary,
               int d),
              (hidden, weight, targets, partials, n, vocabulary, d))
