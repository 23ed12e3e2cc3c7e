// Form (c) of token_reward, for sm_90a: form (b) with TMA, barriers in shared memory and multiplies of a warpgroup.
//
// hidden [n, d] and weight [vocabulary, d] come as tensor maps: T, dimensions {d, rows}, stride 2d bytes (so d is a
// multiple of 8), boxes {DEPTH, BOX_ROWS}, 128-byte swizzle, no interleave, zeros outside. partials [splits, n]. A
// block: ROWS rows, the columns of one split. The first warpgroup only orders copies, up to STAGES ahead; each of the
// other two multiplies 64 rows by COLUMNS columns and then reduces them in its registers, while copies go on. The
// blocks of a cluster, 1 or 2 along x, walk the same columns: each fetches its share of the weight for both. Grid as
// in split.cuh, x a multiple of the cluster; THREADS threads, sizeof(Shared) + 1024 bytes of shared memory.
#include "fragment.cuh"
#include "split.cuh"
#include "wgmma.cuh"

// Other targets compile this file to nothing.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int THREADS = 3 * WARPGROUP;
constexpr int ROWS = 128, COLUMNS = 256, DEPTH = 64, STAGES = 4;
constexpr int BOX_ROWS = 128;
constexpr int CONSUMER_WARPS = 2 * WARPGROUP / WARP;
using Stage = Place<STAGES>;

template <class T> struct alignas(1024) Shared {
    T hidden[STAGES][ROWS * DEPTH];
    T weight[STAGES][COLUMNS * DEPTH];
    Barrier full[STAGES];   // the bytes of a stage are there
    Barrier empty[STAGES];  // no consumer in the cluster reads them any more
};
static_assert(sizeof(Shared<__half>) + 1024 <= 227 << 10 && SPLIT % COLUMNS == 0);

template <class T>
__device__ void produce(Shared<T>& shared, const CUtensorMap& hidden, const CUtensorMap& weight, int row,
                        const Split& split, int d) {
    const unsigned rank = cluster_rank(), blocks = cluster_size();
    Stage stage;
    for (int column = split.begin; column < split.end; column += COLUMNS) {
        for (int depth = 0; depth < d; depth += DEPTH) {
            Barrier& full = shared.full[stage.index];
            wait(shared.empty[stage.index], stage.parity ^ 1);
            expect(full, sizeof(T) * (ROWS + COLUMNS) * DEPTH);
            load_box(shared.hidden[stage.index], hidden, depth, row, full, 1u << rank);
            for (unsigned box = rank; box < COLUMNS / BOX_ROWS; box += blocks) {
                const int first = box * BOX_ROWS;
                load_box(shared.weight[stage.index] + first * DEPTH, weight, depth, column + first, full,
                         (1u << blocks) - 1);
            }
            stage.advance();
        }
    }
}

template <class T>
__device__ void consume(Shared<T>& shared, const unsigned* targets, RowState* partials, int n, int row,
                        const Split& split, int d) {
    const int warp = __shfl_sync(ALL_LANES, warp_id(), 0) - WARPGROUP / WARP;  // known to be the same for all lanes
    const int half_tile = warp / 4 * 64 * DEPTH;
    row += warp * 16;
    unsigned target[2];
    float target_logit[2];
    Sums sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int mine = row + fragment_row(half);
        target[half] = mine < n ? targets[mine] : NO_TARGET;
        target_logit[half] = NEVER;
        sums[half] = NO_LOGITS;
    }
    const unsigned blocks = cluster_size();
    auto release = [&](const Stage& stage) {
        if (unsigned(lane_id()) < blocks) arrive(shared.empty[stage.index], lane_id());
    };

    float logits[COLUMNS / 8][4];
    Stage stage, previous;
    for (int column = split.begin; column < split.end; column += COLUMNS) {
        for (int depth = 0; depth < d; depth += DEPTH) {
            wait(shared.full[stage.index], stage.parity);
            const unsigned long long a = descriptor(shared_address(shared.hidden[stage.index] + half_tile));
            const unsigned long long b = descriptor(shared_address(shared.weight[stage.index]));
            wgmma_fence(logits);
#pragma unroll
            for (int k = 0; k < DEPTH; k += 16) {
                wgmma<T>(logits, a + k * sizeof(T) / 16, b + k * sizeof(T) / 16, depth + k > 0);
            }
            wgmma_commit();
            wgmma_wait<1>(logits);
            if (depth > 0) release(previous);
            previous = stage;
            stage.advance();
        }
        wgmma_wait<0>(logits);
        release(previous);

        const int columns = split.end - column;
        if (columns < COLUMNS) mask(logits, columns);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            target_logit[half] = fmaxf(target_logit[half], logit_at(logits, half, target[half] - column));
            sums[half] = merge_sums(sums[half], summarize_row(logits, half));
        }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int lane = 1; lane < QUAD; lane *= 2) {
            target_logit[half] = fmaxf(target_logit[half], __shfl_xor_sync(ALL_LANES, target_logit[half], lane));
        }
        const int mine = row + fragment_row(half);
        if (lane_id() % QUAD != 0 || mine >= n) continue;
        partials[size_t(split.index) * n + mine] = row_state(sums[half], target_logit[half]);
    }
}

template <class T>
__device__ void token_reward_wgmma(const CUtensorMap& hidden, const CUtensorMap& weight, const unsigned* targets,
                                   RowState* partials, int n, int vocabulary, int d) {
    const size_t bytes = reinterpret_cast<size_t>(dynamic_shared<char>());
    auto& shared = *reinterpret_cast<Shared<T>*>((bytes + 1023) / 1024 * 1024);
    const int row = first_row(ROWS);
    const Split split(vocabulary);
    if (row - int(cluster_rank()) * ROWS >= n) return;  // the whole cluster
    if (threadIdx.x == 0) {
        prefetch(hidden);
        prefetch(weight);
        for (int i = 0; i < STAGES; ++i) {
            init(shared.full[i], 1);
            init(shared.empty[i], CONSUMER_WARPS * cluster_size());
        }
    }
    __syncwarp();
    cluster_sync();
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<40>();
        if (threadIdx.x == 0) produce(shared, hidden, weight, row, split, d);
        __syncwarp();
    } else {
        more_registers<232>();
        consume(shared, targets, partials, n, row, split, d);
    }
    cluster_sync();  // no block ends while another may still write to it
}

KERNEL_16_BIT(token_reward_wgmma, THREADS,
              (const __grid_constant__ CUtensorMap hidden, const __grid_constant__ CUtensorMap weight,
               const unsigned* targets, RowState* partials, int n, int vocabulary, int d),
              (hidden, weight, targets, partials, n, vocabulary, d))
#endif
