// zmlx/kernel/cuda/delta.cuh: the gated delta rule; a warp has a row of the state in its registers, over all tokens.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// The state is there already, and is replaced. Lanes have elements lane + 32 j of keys, j < per_lane.
template <typename T, typename Gate, typename Beta, bool wide_gate, bool masked, int per_lane>
__global__ void __launch_bounds__(128) gated_delta(
    Pointer q,
    Pointer k,
    Pointer v,
    Pointer gates,
    Pointer betas,
    Pointer mask,
    Pointer y,
    Pointer state,
    int rows,
    int tokens,
    int k_heads,
    int v_heads,
    int width,
    int value_width) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 4 + warp_index();
  if (row >= rows) {
    return;
  }
  const int64_t item = row / value_width; // sequence and head
  const int64_t b = item / v_heads;
  const int64_t head = item % v_heads;
  float* kept = state.as<float>() + row * width;
  float s[per_lane];
  for (int j = 0; j < per_lane; ++j) {
    const int i = lane_index() + 32 * j;
    s[j] = i < width ? kept[i] : 0.0f;
  }
  for (int64_t token = b * tokens; token < (b + 1) * tokens; ++token) {
    const int64_t at = token * v_heads + head;
    T* to = y.as<T>() + at * value_width + row % value_width;
    if (masked && !mask.as<uint8_t>()[token]) {
      if (lane_index() == 0) {
        *to = from_float<T>(0);
      }
      continue;
    }
    const int64_t in_keys = (token * k_heads + head / (v_heads / k_heads)) * width;
    const float gate = wide_gate ? 0.0f : to_float(gates.as<Gate>()[at]);
    float key[per_lane];
    float query[per_lane];
    float known = 0;
    for (int j = 0; j < per_lane; ++j) {
      const int i = lane_index() + 32 * j;
      key[j] = i < width ? to_float(k.as<T>()[in_keys + i]) : 0.0f;
      query[j] = i < width ? to_float(q.as<T>()[in_keys + i]) : 0.0f;
      s[j] *= !wide_gate ? gate : i < width ? to_float(gates.as<Gate>()[at * width + i]) : 0.0f;
      known = fmaf(s[j], key[j], known);
    }
    const float value = to_float(v.as<T>()[at * value_width + row % value_width]);
    const float change = (value - warp_sum(known)) * to_float(betas.as<Beta>()[at]);
    float answer = 0;
    for (int j = 0; j < per_lane; ++j) {
      s[j] = fmaf(change, key[j], s[j]);
      answer = fmaf(s[j], query[j], answer);
    }
    answer = warp_sum(answer);
    if (lane_index() == 0) {
      *to = from_float<T>(answer);
    }
  }
  for (int j = 0; j < per_lane; ++j) {
    const int i = lane_index() + 32 * j;
    if (i < width) {
      kept[i] = s[j];
    }
  }
}
