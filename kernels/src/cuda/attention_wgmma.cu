// attention_mma for sm_90a and heads of 64 and 128 elements: its arithmetic with multiplies of a warpgroup, which read
// keys and values from shared memory themselves (FlashAttention-3, arXiv 2407.08608).
//
// Shapes as in attention.cu. Grid (tasks, kv_heads), THREADS threads, sizeof(Shared) + 1024 bytes of shared memory. A
// block takes ROWS rows of the task at a time. Its first warpgroup only copies blocks of KEYS absolute positions, row
// by row as they lie, up to STAGES ahead; each of the other two answers 64 rows, 16 a warp, and its softmax runs beside
// the other's multiplies.
#include "attention_rows.cuh"
#include "wgmma.cuh"

// Other targets compile this file to nothing.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace warpgroups {

constexpr int THREADS = 3 * WARPGROUP;
constexpr int ROWS = 128, KEYS = 64, STAGES = 4;
constexpr int WIDTH = 64;  // elements of a tile's row: 128 bytes
constexpr int WARPS = WARPGROUP / WARP, CONSUMER_WARPS = 2 * WARPS;
constexpr int LATE = 2;  // stages whose copies are on their way while the next one's are started
// Consumers give a stage back once they have the one behind it, which is announced LATE stages late.
static_assert(STAGES >= LATE + 2);
using Stage = Place<STAGES>;

struct Barriers {
    Barrier full[STAGES];   // the keys and values of a stage are there
    Barrier empty[STAGES];  // no consumer reads them any more
};

template <class T, int D> struct Shared : Barriers {
    alignas(1024) T keys[STAGES][D / WIDTH][KEYS * WIDTH];
    T values[STAGES][D / WIDTH][KEYS * WIDTH];
};
static_assert(sizeof(Shared<__half, 128>) + 1024 <= 227 << 10);

// The blocks of keys that some of rows first .. first + ROWS see.
struct Blocks {
    int begin, end;
    template <class T> __device__ Blocks(const Attention<T>& a, int first) {
        begin = a.first_block(a.position(first), KEYS);
        end = a.position(min(first + ROWS, a.rows()) - 1) + 1;
    }
};

template <class T, int D> __device__ void produce(const Attention<T>& a, Shared<T, D>& shared) {
    constexpr int CHUNKS = D / 8, ROWS_AT_ONCE = WARP / CHUNKS, WARP_KEYS = KEYS / WARPS;
    const int own = warp_id() * WARP_KEYS, chunk = lane_id() % CHUNKS;
    // Where the keys of a warp's rows lie, each lane one. Beyond the last key, that one again: no row sees it there.
    const auto find = [&](int block) {
        const int key = min(block + own + lane_id() % WARP_KEYS, a.end() - 1);
        return reinterpret_cast<unsigned long long>(a.key(a.key_row(key)));
    };
    Stage stage, copied;
    int late = 0;
    const auto announce = [&] {
        copies_are_seen();
        __syncwarp();
        if (lane_id() == 0) arrive(shared.full[copied.index]);
        copied.advance();
        --late;
    };
    for (int first = 0; first < a.rows(); first += ROWS) {
        const Blocks blocks(a, first);
        unsigned long long found = find(blocks.begin);
        for (int block = blocks.begin; block < blocks.end; block += KEYS) {
            const unsigned long long next = find(block + KEYS);
            wait(shared.empty[stage.index], stage.parity ^ 1);
#pragma unroll
            for (int i = 0; i < WARP_KEYS; i += ROWS_AT_ONCE) {
                const int mine = i + lane_id() / CHUNKS, row = own + mine;
                const T* from = reinterpret_cast<const T*>(__shfl_sync(ALL_LANES, found, mine)) + chunk * 8;
                const int to = row * WIDTH + (chunk % 8 ^ row % 8) * 8;
                cp_async_16(shared.keys[stage.index][chunk / 8] + to, from, true);
                cp_async_16(shared.values[stage.index][chunk / 8] + to, from + a.values(), true);
            }
            cp_async_commit();
            found = next;
            stage.advance();
            if (++late > LATE) {
                cp_async_wait<LATE>();
                announce();
            }
        }
    }
    cp_async_wait<0>();
    while (late > 0) announce();
}

// Scores of 64 rows and the block's keys.
template <class T, int D>
__device__ void multiply_keys(const Rows<D>& rows, Shared<T, D>& shared, const Stage& stage, float (&s)[KEYS / 8][4]) {
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        const auto keys = descriptor(shared_address(shared.keys[stage.index][i / 4]));
        wgmma_m64n64k16<T, false>(s, rows.q[i], keys + i % 4 * 2, i > 0);
    }
}

// out += weights · values.
template <class T, int D>
__device__ void multiply_values(Rows<D>& rows, Shared<T, D>& shared, const Stage& stage,
                                const unsigned (&weights)[KEYS / 16][4]) {
#pragma unroll
    for (int j = 0; j < KEYS / 16; ++j) {
#pragma unroll
        for (int i = 0; i < D / WIDTH; ++i) {
            const auto values = descriptor(shared_address(shared.values[stage.index][i]));
            auto& out = reinterpret_cast<float(&)[8][4]>(rows.out[8 * i]);
            wgmma_m64n64k16<T, true>(out, weights[j], values + j * 16 * 128 / 16, true);
        }
    }
}

// The warp's queries as a multiply's left operand.
template <class T, int D>
__device__ void load_queries(const Attention<T>& a, Rows<D>& rows, int first, int count, int own) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const T* from = a.query(first + min(own + lane_id() / 4 + 8 * r, count - 1)) + lane_id() % 4 * 2;
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
            rows.q[i][r] = *reinterpret_cast<const unsigned*>(from + 16 * i);
            rows.q[i][r + 2] = *reinterpret_cast<const unsigned*>(from + 16 * i + 8);
        }
    }
}

template <class T, int D> __device__ void consume(const Attention<T>& a, Shared<T, D>& shared) {
    const int warp = __shfl_sync(ALL_LANES, warp_id(), 0) - WARPS;  // known to be the same for all lanes
    const int own = warp * WARP_ROWS, group = warp / WARPS * 64;
    const float scale = score_scale<D>();
    Stage stage;
    const auto release = [&](const Stage& stage) {
        if (lane_id() == 0) arrive(shared.empty[stage.index]);
    };
    for (int first = 0; first < a.rows(); first += ROWS) {
        const int count = min(ROWS, a.rows() - first);
        const Blocks blocks(a, first);
        // Behind the warpgroup's last row, or before all keys where it has none.
        const int end = group < count ? a.position(first + min(group + 64, count) - 1) + 1 : blocks.begin;
        Rows<D> rows(a, first, own, count);
        load_queries(a, rows, first, count, own);
        int block = blocks.begin;
        if (block < end) {
            float s[KEYS / 8][4];
            unsigned weights[KEYS / 16][4];
            float correction[2];
            wait(shared.full[stage.index], stage.parity);
            hold(s);
            wgmma_fence();
            multiply_keys(rows, shared, stage, s);
            wgmma_commit();
            wgmma_wait<0>();
            hold(s);
            mask(a, rows, s, block);
            softmax(rows, s, scale, correction);
            as_operand<T>(weights, s);
            Stage before = stage;
            stage.advance();
            for (block += KEYS; block < end; block += KEYS) {
                wait(shared.full[stage.index], stage.parity);
                hold(s);
                hold(rows.out);
                wgmma_fence();
                multiply_keys(rows, shared, stage, s);
                wgmma_commit();
                multiply_values(rows, shared, before, weights);
                wgmma_commit();
                wgmma_wait<1>();
                hold(s);
                mask(a, rows, s, block);
                softmax(rows, s, scale, correction);
                wgmma_wait<0>();
                hold(rows.out);
                release(before);
                correct(rows, correction);
                as_operand<T>(weights, s);
                before = stage;
                stage.advance();
            }
            hold(rows.out);
            wgmma_fence();
            multiply_values(rows, shared, before, weights);
            wgmma_commit();
            wgmma_wait<0>();
            hold(rows.out);
            release(before);
        }
        // What only the other warpgroup's rows see.
        for (; block < blocks.end; block += KEYS) {
            wait(shared.full[stage.index], stage.parity);
            __syncwarp();  // no lane is a round behind
            release(stage);
            stage.advance();
        }
        write(a, rows, first, own, count);
    }
}

template <class T> __device__ void attention_wgmma(const Attention<T>& a) {
    const size_t bytes = reinterpret_cast<size_t>(dynamic_shared<char>());
    auto* shared = reinterpret_cast<Barriers*>((bytes + 1023) / 1024 * 1024);
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; ++i) {
            init(shared->full[i], WARPS);
            init(shared->empty[i], CONSUMER_WARPS);
        }
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        fewer_registers<40>();
        a.head_dim == 64 ? produce<T, 64>(a, *static_cast<Shared<T, 64>*>(shared))
                         : produce<T, 128>(a, *static_cast<Shared<T, 128>*>(shared));
    } else {
        more_registers<232>();
        a.head_dim == 64 ? consume<T, 64>(a, *static_cast<Shared<T, 64>*>(shared))
                         : consume<T, 128>(a, *static_cast<Shared<T, 128>*>(shared));
    }
}

}  // namespace warpgroups

using warpgroups::attention_wgmma;
// One block an SM: without that said, the compiler does not believe in registers that change hands.
KERNEL_16_BIT_WITHIN(attention_wgmma, (warpgroups::THREADS, 1), ATTENTION_PARAMETERS, ATTENTION_ARGUMENTS)
#endif
