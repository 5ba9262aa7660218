// zmlx/kernel/cuda/paged.cuh: attention of one token a sequence over a KV cache in blocks. Each warp has some of a head's keys;
// a second launch brings their results together.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// What e^x is taken of is x - base: the largest score, unless that is not finite.
ZMLX_DEVICE float base_of(float largest) {
  return largest == infinity() || largest == -infinity() ? 0.0f : largest;
}

/// Part p of head h, (h * parts + p) * (value_width + 2) floats into `results`: sums, the largest score, the total of weights.
/// blockIdx is (sequence and head, four parts). There is nobody to tell about a block that is not there: its head is NaN.
template <typename T, int per_lane>
__global__ void __launch_bounds__(128) paged_attention(
    Pointer q,
    Pointer keys,
    Pointer values,
    Pointer table,
    Pointer lengths,
    Pointer results,
    int q_heads,
    int kv_heads,
    int width,
    int value_width,
    int blocks,
    int block_size,
    int table_blocks,
    float scale) {
  start_successor();
  wait_for_predecessor();
  const int64_t head = blockIdx.x;
  const int64_t b = head / q_heads;
  const int kv_head = static_cast<int>(head % q_heads / (q_heads / kv_heads));
  const int parts = static_cast<int>(gridDim.y) * 4;
  const int part = static_cast<int>(blockIdx.y) * 4 + warp_index();
  const int64_t room = static_cast<int64_t>(table_blocks) * block_size;
  const int64_t asked = lengths.as<int32_t>()[b];
  const int64_t length = asked < room ? asked : room;
  const int64_t each = (length + parts - 1) / parts;
  const int64_t last = part * each + each < length ? part * each + each : length;
  float query[per_lane];
  float sums[per_lane];
  for (int j = 0; j < per_lane; ++j) {
    const int i = lane_index() + 32 * j;
    query[j] = i < width ? to_float(q.as<T>()[head * width + i]) * scale : 0.0f;
    sums[j] = 0;
  }
  float high = -infinity();
  float total = 0;
  for (int64_t key = part * each; key < last; ++key) {
    const int block = table.as<int32_t>()[b * table_blocks + key / block_size];
    const bool valid = block >= 0 && block < blocks;
    const int64_t row = ((valid ? block : 0) * static_cast<int64_t>(block_size) + key % block_size) * kv_heads + kv_head;
    float value[per_lane];
    float score = 0;
    for (int j = 0; j < per_lane; ++j) {
      const int i = lane_index() + 32 * j;
      score = i < width ? fmaf(query[j], to_float(keys.as<T>()[row * width + i]), score) : score;
      value[j] = i < value_width ? to_float(values.as<T>()[row * value_width + i]) : 0.0f;
    }
    score = valid ? warp_sum(score) : not_a_number();
    const float largest = fmaxf(high, score);
    const float keep = expf(high - base_of(largest));
    const float weight = expf(score - base_of(largest));
    for (int j = 0; j < per_lane; ++j) {
      sums[j] = fmaf(weight, value[j], sums[j] * keep);
    }
    total = fmaf(total, keep, weight);
    high = largest;
  }
  float* to = results.as<float>() + (head * parts + part) * (value_width + 2);
  for (int j = 0; j < per_lane; ++j) {
    const int i = lane_index() + 32 * j;
    if (i < value_width) {
      to[i] = sums[j];
    }
  }
  if (lane_index() == 0) {
    to[value_width] = high;
    to[value_width + 1] = total;
  }
}

/// A block a head.
template <typename T>
__global__ void __launch_bounds__(128)
    merge_parts(Pointer results, Pointer lengths, Pointer out, int q_heads, int parts, int value_width) {
  start_successor();
  wait_for_predecessor();
  const int64_t head = blockIdx.x;
  const int step = value_width + 2;
  const float* from = results.as<float>() + head * parts * step;
  const bool empty = lengths.as<int32_t>()[head / q_heads] <= 0;
  float largest = -infinity();
  for (int p = 0; p < parts; ++p) {
    largest = fmaxf(largest, from[p * step + value_width]);
  }
  for (int i = static_cast<int>(threadIdx.x); i < value_width; i += 128) {
    float sum = 0;
    float all = 0;
    for (int p = 0; p < parts; ++p) {
      const float weight = expf(from[p * step + value_width] - base_of(largest));
      all = fmaf(weight, from[p * step + value_width + 1], all);
      sum = fmaf(weight, from[p * step + i], sum);
    }
    out.as<T>()[head * value_width + i] = from_float<T>(empty ? 0.0f : sum / all);
  }
}
