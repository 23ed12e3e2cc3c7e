// Gathers the keys and values of chosen rows, to be kept for later batches: those of rows[i] go to row places[i].
//
// qkv [·, (q_heads + 2 kv_heads) · head_dim] T: a row's queries, keys, values; out [·, 2 kv_heads · head_dim]: keys,
// values. Both are one run of a row. rows and places [count]. Grid (count, blocks that share a row).
#include "common.cuh"

template <class T>
__device__ void keys_values(const T* qkv, const unsigned* rows, const unsigned* places, T* out, int count, int q_heads,
                            int kv_heads, int head_dim) {
    const int row = blockIdx.x;
    if (row >= count) return;
    const int length = 2 * kv_heads * head_dim, queries = q_heads * head_dim;
    const T* from = qkv + size_t(rows[row]) * (queries + length) + queries;
    T* to = out + size_t(places[row]) * length;
    for_columns<PACK<T>>(length, [=](int column, auto width) {
        copy<decltype(width)::value>(to + column, from + column);
    }, queries);
}

KERNEL(keys_values, 256,
       (const T* qkv, const unsigned* rows, const unsigned* places, T* out, int count, int q_heads, int kv_heads,
        int head_dim),
       (qkv, rows, places, out, count, q_heads, kv_heads, head_dim))
