// zmlx/kernel/cuda/copy.cuh: copies chunks into longer ones: a state into its grown self; zeros.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// Chunk blockIdx.x of `from_words` words each goes to where chunks have `to_words`; blocks along y
/// share a chunk. What lies beyond stays as it is.
template <typename Word>
__global__ void copy_chunks(Pointer from, Pointer to, Extent from_words, Extent to_words) {
  wait_for_predecessor();
  start_successor();
  int64_t words = from_words.get() < to_words.get() ? from_words.get() : to_words.get();
  auto* source = from.as<const Word>() + blockIdx.x * from_words.get();
  auto* target = to.as<Word>() + blockIdx.x * to_words.get();
  for (int64_t i = blockIdx.y * blockDim.x + threadIdx.x; i < words; i += gridDim.y * blockDim.x) {
    target[i] = source[i];
  }
}

/// to[i] = 0 for i < words; one block.
template <typename Word>
__global__ void clear_words(Pointer to, Extent words) {
  wait_for_predecessor();
  start_successor();
  for (int64_t i = threadIdx.x; i < words.get(); i += blockDim.x) {
    to.as<Word>()[i] = 0;
  }
}
