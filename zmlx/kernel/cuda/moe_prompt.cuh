// zmlx/kernel/cuda/moe_prompt.cuh: a prompt's pairs of a token and one of its experts, sorted by expert, and their results
// brought together again.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// One block. offsets [experts + 1]: where each expert's pairs begin; order: the pair at each place; place: the place of each
/// pair. The pairs of an expert come in no particular order, which no result depends on. A pair of an expert that is not there
/// goes with the last one; combine_pairs knows.
__global__ void __launch_bounds__(1024)
    sort_pairs(Pointer indices, Pointer offsets, Pointer order, Pointer place, int pairs, int experts) {
  start_successor();
  wait_for_predecessor();
  int* counts = reinterpret_cast<int*>(dynamic_shared());
  __shared__ int totals[32];
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t* named = indices.as<uint32_t>();
  auto expert_of = [&](int pair) {
    const uint32_t expert = named[pair];
    return expert < static_cast<uint32_t>(experts) ? static_cast<int>(expert) : experts - 1;
  };
  for (int e = thread; e < experts; e += 1024) {
    counts[e] = 0;
  }
  sync_block();
  for (int i = thread; i < pairs; i += 1024) {
    atomic_add(&counts[expert_of(i)], 1);
  }
  sync_block();
  // Exclusive prefix sum, an expert a thread.
  const int own = thread < experts ? counts[thread] : 0;
  int sum = own;
  for (int d = 1; d < 32; d *= 2) {
    const int other = shuffle_up(sum, d);
    sum += lane_index() >= d ? other : 0;
  }
  if (lane_index() == 31) {
    totals[warp_index()] = sum;
  }
  sync_block();
  for (int w = 0; w < warp_index(); ++w) {
    sum += totals[w];
  }
  if (thread < experts) {
    counts[thread] = sum - own;
    offsets.as<int>()[thread] = sum - own;
  }
  if (thread == 0) {
    offsets.as<int>()[experts] = pairs;
  }
  sync_block();
  for (int i = thread; i < pairs; i += 1024) {
    const int at = atomic_add(&counts[expert_of(i)], 1);
    order.as<int>()[at] = i;
    place.as<int>()[i] = at;
  }
}

/// out [tokens, n] = sum over a token's pairs of weight * y[place], and the residual. Blocks (token, 256 elements).
template <typename T>
__global__ void __launch_bounds__(256) combine_pairs(
    Pointer y,
    Pointer place,
    Pointer indices,
    Pointer weights,
    Pointer residual,
    Pointer out,
    int n,
    int chosen,
    int experts,
    int has_residual) {
  start_successor();
  wait_for_predecessor();
  const int64_t token = blockIdx.x;
  const int j = static_cast<int>(blockIdx.y * 256 + threadIdx.x);
  if (j >= n) {
    return;
  }
  float sum = 0;
  for (int e = 0; e < chosen; ++e) {
    const int64_t pair = token * chosen + e;
    const float value = to_float(y.as<T>()[static_cast<int64_t>(place.as<int>()[pair]) * n + j]);
    const bool valid = indices.as<uint32_t>()[pair] < static_cast<uint32_t>(experts);
    sum = fmaf(valid ? value : bits_to_float(0x7FC00000u), to_float(weights.as<T>()[pair]), sum);
  }
  sum += has_residual ? to_float(residual.as<T>()[token * n + j]) : 0.0f;
  out.as<T>()[token * n + j] = from_float<T>(sum);
}
