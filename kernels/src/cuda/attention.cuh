// What the attention kernels share: whose queries a block answers, where their keys lie, and which of them they see.
//
// The queries of a task and the query heads that read one key/value head are one list of rows, a query's heads side
// by side, so that these heads share the keys and values that a block loads.
#pragma once
#include "common.cuh"

// Queries are rows row .. row + len of qkv, at positions position ..; the key of position p is in row key_rows[chain
// + p].
struct AttentionTask {
    unsigned row, len, position, chain;
};

constexpr unsigned NO_KEY = ~0u;

template <class T> struct Attention {
    const T *qkv, *kept;
    const unsigned* key_rows;
    T* out;
    int n, q_heads, kv_heads, head_dim, window;
    AttentionTask task;
    int kv_head;

    __device__ int group() const { return q_heads / kv_heads; }
    __device__ int rows() const { return int(task.len) * group(); }
    __device__ int end() const { return int(task.position + task.len); }
    __device__ int position(int row) const { return int(task.position) + row / group(); }
    __device__ int query_head(int row) const { return kv_head * group() + row % group(); }

    __device__ const T* query(int row) const {
        const size_t width = size_t(q_heads + 2 * kv_heads) * head_dim;
        return qkv + (task.row + row / group()) * width + size_t(query_head(row)) * head_dim;
    }
    __device__ T* output(int row) const {
        return out + (size_t(task.row + row / group()) * q_heads + query_head(row)) * head_dim;
    }

    __device__ unsigned key_row(int position) const {
        return position < end() ? key_rows[task.chain + position] : NO_KEY;
    }
    // The key in a row of qkv or, from n on, of kept. Its value is values() further.
    __device__ const T* key(unsigned row) const {
        const size_t head = size_t(kv_head) * head_dim;
        if (row < unsigned(n)) return qkv + (size_t(row) * (q_heads + 2 * kv_heads) + q_heads) * head_dim + head;
        return kept + size_t(row - n) * 2 * kv_heads * head_dim + head;
    }
    __device__ int values() const { return kv_heads * head_dim; }

    // The first of the blocks of `keys` positions, counted from 0, that a query at `position` sees.
    __device__ int first_block(int position, int keys) const {
        const int low = window > 0 && position >= window ? position - window + 1 : 0;
        return low / keys * keys;
    }
    __device__ bool sees(int position, int key) const {
        return key <= position && (window <= 0 || key > position - window);
    }
};

// `kernel(Attention)` under the names of a kernel, which all have the same parameters.
#define ATTENTION_PARAMETERS                                                                                         \
    (const T* qkv, const T* kept, const AttentionTask* tasks, const unsigned* key_rows, T* out, int n, int q_heads,  \
     int kv_heads, int head_dim, int window)
#define ATTENTION_ARGUMENTS                                                                                          \
    ({qkv, kept, key_rows, out, n, q_heads, kv_heads, head_dim, window, tasks[blockIdx.x], int(blockIdx.y)})
