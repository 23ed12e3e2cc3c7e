// How token_reward deals its work over blocks: blockIdx.y is a split of the vocabulary, x and z are rows.
//
// Blocks start in the order x, y, z. So gridDim.x tiles of rows go by together, and meanwhile stay in L2, while the
// weight streams past them once; then come the next, z. How many they are is for the launch to say, by d and L2; no
// result depends on it, as that is the merge of the splits alone, and their number follows from the vocabulary.
#pragma once

constexpr int SPLIT = 1024;  // columns of a split; a multiple of a tile's

// The columns begin..end of this block's split.
struct Split {
    int index, begin, end;
    __device__ explicit Split(int vocabulary)
        : index(blockIdx.y), begin(index * SPLIT), end(min(begin + SPLIT, vocabulary)) {}
};

// The first of this block's rows, maybe beyond the last there is.
__device__ inline int first_row(int rows) { return int(blockIdx.z * gridDim.x + blockIdx.x) * rows; }
