// zmlx/kernel/cuda/choice.cuh: which experts a token goes to: alone, or behind the router of one token.
#pragma once

#include "zmlx/kernel/cuda/row.cuh"

/// The indices and weights [k] of the most likely of `experts` experts, largest first, among equals the lower index first; NaN
/// counts as smallest. Every warp has all logits, lane + 32 j in a lane; a thread compares one expert with all others, so that
/// an expert's place is the number of those before it. All threads of the block call it, at most once.
template <typename T, int experts_a_lane>
ZMLX_DEVICE void choose(
    const T* logits, uint32_t* indices, T* weights, int experts, int k, int normalize, int rounds) {
  constexpr int padded = 32 * experts_a_lane;
  __shared__ uint4 key_words[padded / 4];
  __shared__ float by_expert[padded];
  __shared__ float by_place[padded];
  auto* keys = reinterpret_cast<uint32_t*>(key_words);
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  float weight[experts_a_lane];
  float high = -infinity();
#pragma unroll
  for (int j = 0; j < experts_a_lane; ++j) {
    const int i = lane_index() + 32 * j;
    weight[j] = i < experts ? to_float(load_fresh(logits + i)) : -infinity();
    high = fmaxf(high, weight[j]);
  }
  high = warp_max(high);
  float sum = 0;
#pragma unroll
  for (int j = 0; j < experts_a_lane; ++j) {
    weight[j] = lane_index() + 32 * j < experts ? expf(weight[j] - high) : 0;
    sum += weight[j];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int j = 0; j < experts_a_lane; ++j) {
    weight[j] = to_float(from_float<T>(weight[j] / sum));
    if (warp_index() == 0) { // weights order as their bits do, from 1 on; NaN below, then what is not there
      keys[lane_index() + 32 * j] = weight[j] == weight[j] ? float_to_bits(weight[j]) + 1 : 0;
      by_expert[lane_index() + 32 * j] = weight[j];
    }
  }
  sync_block();
  // Threads share an expert's comparisons while there are enough.
  const int sharing = threads >= 2 * padded ? 2 : 1;
  for (int first = 0; first < padded; first += threads / sharing) {
    const int mine = first + thread / sharing;
    int before = 0;
    const uint32_t key = mine < experts ? keys[mine] : 0;
    for (int i = thread % sharing * 4; i < padded && mine < experts; i += 4 * sharing) {
      const uint4 others = key_words[i / 4];
      const uint32_t other[4] = {others.x, others.y, others.z, others.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        before += i + e < experts && other[e] + (i + e < mine ? 1 : 0) > key ? 1 : 0;
      }
    }
    if (sharing == 2) {
      before += shuffle_xor(before, 1);
    }
    if (mine < experts && before < k && thread % sharing == 0) {
      indices[before] = static_cast<uint32_t>(mine);
      by_place[before] = by_expert[mine];
    }
  }
  sync_block();
  for (int i = thread; i < k; i += threads) {
    float divisor = 1;
    if (normalize) {
      divisor = 0;
      for (int n = 0; n < k; ++n) {
        divisor += by_place[n];
      }
      divisor = rounds ? to_float(from_float<T>(divisor)) : divisor;
    }
    weights[i] = from_float<T>(by_place[i] / divisor);
  }
}

/// Logits [tokens, experts] to indices and weights [tokens, k]; a block a token.
template <typename T, int experts_a_lane>
__global__ void __launch_bounds__(128) choose_experts(
    Pointer logits, Pointer indices, Pointer weights, int experts, int k, int normalize, int rounds) {
  start_successor();
  wait_for_predecessor();
  const int64_t token = blockIdx.x;
  choose<T, experts_a_lane>(
      logits.as<T>() + token * experts,
      indices.as<uint32_t>() + token * k,
      weights.as<T>() + token * k,
      experts,
      k,
      normalize,
      rounds);
}

/// One token x [k], normalised if `norm` is set (and then written to `normal`), to logits [n] and from them to `chosen` experts:
/// a block makes 16 logits, and the last one chooses.
template <typename T, typename W, int chunks, int slices, bool whole, bool has_norm, int experts_a_lane>
__global__ void __launch_bounds__(256) route_row(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    Pointer normal,
    Pointer codes,
    Pointer scales,
    Pointer biases,
    Pointer logits,
    int n,
    Pointer counter,
    Pointer indices,
    Pointer weights,
    int chosen,
    int normalize) {
  using Part = RowPart<T, W, chunks, slices, whole>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int row = static_cast<int>(blockIdx.x) * 16;
  typename Part::Stream stream[1];
  stream[0].begin(weight_at(codes, scales, biases), row, n, k, warp_index(), warps);
  typename Part::Held norm_weight;
  if constexpr (has_norm) {
    norm_weight = Part::read(norm.as<T>(), warp_index(), warps, k);
  }
  start_successor();
  wait_for_predecessor();
  float y[1];
  row_products<Part, 1, has_norm, T>(
      y, stream, x.as<T>(), norm_weight, eps, k, blockIdx.x == 0 && has_norm ? normal.as<T>() : nullptr);
  const int i = static_cast<int>(threadIdx.x);
  if (i < 16 && row + i < n) {
    logits.as<T>()[row + i] = from_float<T>(y[0]);
  }
  if (is_last_block(counter.as<int>(), static_cast<int>(gridDim.x))) {
    choose<T, experts_a_lane>(logits.as<T>(), indices.as<uint32_t>(), weights.as<T>(), n, chosen, normalize, 0);
  }
}
