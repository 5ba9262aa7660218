// zmlx/kernel/cuda/choice.cuh: which experts a token goes to.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// Those of a token's experts that have not been taken yet; every warp has them to itself, lane + 32 j in a lane.
template <typename T, int experts_a_lane>
struct Experts {
  static constexpr bool packed = sizeof(T) == 2; // a key ends in the expert, so that no two are equal
  static constexpr uint32_t last = 0xFFFFu; // lower experts have larger ends

  /// Larger for larger weights, which order as their bits do; NaN counts as smallest, 0 as none.
  uint32_t keys[experts_a_lane];

  struct Taken {
    int expert;
    float weight; // of a softmax over all experts
  };

  ZMLX_DEVICE void read(const T* logits, int experts) {
    float weight[experts_a_lane];
    float high = -infinity();
#pragma unroll
    for (int j = 0; j < experts_a_lane; ++j) {
      const int i = lane_index() + 32 * j;
      weight[j] = i < experts ? to_float(logits[i]) : -infinity();
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
      const auto i = static_cast<uint32_t>(lane_index() + 32 * j);
      const T stored = from_float<T>(weight[j] / sum);
      const float value = to_float(stored);
      const uint32_t order = value == value ? bits_of(stored) + 2 : 1;
      keys[j] = i >= static_cast<uint32_t>(experts) ? 0 : packed ? order << 16 | (last - i) : order;
    }
  }

  /// The most likely of those left, among equals the lowest. All lanes of the warp call it.
  ZMLX_DEVICE Taken take() {
    uint32_t best = 0;
#pragma unroll
    for (int j = 0; j < experts_a_lane; ++j) {
      best = keys[j] > best ? keys[j] : best;
    }
    best = warp_max(best);
    uint32_t expert = last - (best & 0xFFFFu);
    if constexpr (!packed) {
      expert = last;
#pragma unroll
      for (int j = experts_a_lane - 1; j >= 0; --j) {
        expert = keys[j] == best ? static_cast<uint32_t>(lane_index() + 32 * j) : expert;
      }
      expert = warp_min(expert);
    }
#pragma unroll
    for (int j = 0; j < experts_a_lane; ++j) {
      keys[j] = expert == static_cast<uint32_t>(lane_index() + 32 * j) ? 0 : keys[j];
    }
    const uint32_t order = packed ? best >> 16 : best;
    return {static_cast<int>(expert), order < 2 ? bits_to_float(0x7FC00000u) : value_of(order - 2)};
  }

 private:
  static ZMLX_DEVICE uint32_t bits_of(T x) {
    if constexpr (packed) {
      return x.bits;
    } else {
      return float_to_bits(x);
    }
  }
  static ZMLX_DEVICE float value_of(uint32_t bits) {
    if constexpr (packed) {
      return to_float(T{static_cast<uint16_t>(bits)});
    } else {
      return bits_to_float(bits);
    }
  }
};

/// Takes k experts and calls f(place, expert, weight) for each, largest weight first. Returns what weights are divided by.
template <typename T, int experts_a_lane, typename F>
ZMLX_DEVICE float choose(const T* logits, int experts, int k, bool normalize, bool rounds, const F& f) {
  Experts<T, experts_a_lane> left;
  left.read(logits, experts);
  float sum = 0;
#pragma unroll 1
  for (int place = 0; place < k; ++place) {
    const auto taken = left.take();
    f(place, taken.expert, taken.weight);
    sum += taken.weight;
  }
  return !normalize ? 1.0f : rounds ? to_float(from_float<T>(sum)) : sum;
}

/// Logits [tokens, experts] to indices and weights [tokens, k]; a warp a token.
template <typename T, int experts_a_lane>
__global__ void __launch_bounds__(128) choose_experts(
    Pointer logits, Pointer indices, Pointer weights, int tokens, int experts, int k, int normalize, int rounds) {
  start_successor();
  wait_for_predecessor();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * 4 + warp_index();
  if (token >= tokens) {
    return;
  }
  uint32_t* to = indices.as<uint32_t>() + token * k;
  T* shares = weights.as<T>() + token * k;
  const float divisor = choose<T, experts_a_lane>(
      logits.as<T>() + token * experts, experts, k, normalize != 0, rounds != 0, [&](int place, int expert, float weight) {
        if (place % 32 == lane_index()) {
          to[place] = static_cast<uint32_t>(expert);
          shares[place] = from_float<T>(weight);
        }
      });
  for (int place = lane_index(); place < k; place += 32) {
    shares[place] = from_float<T>(to_float(shares[place]) / divisor);
  }
}
