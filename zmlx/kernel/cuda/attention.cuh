// zmlx/kernel/cuda/attention.cuh: softmax(q k^T) v over a KV cache. What all kernels share, and the plain one, for any type,
// width and mask: a block a query row.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

inline constexpr float log2_e = 1.4426950408889634f;

ZMLX_DEVICE int smaller(int a, int b) {
  return a < b ? a : b;
}
ZMLX_DEVICE int larger(int a, int b) {
  return a > b ? a : b;
}

/// The rows that share a KV head are its (token, query head) pairs, tokens first.
struct QueryHeads {
  int tokens;
  int q_heads;
  int kv_heads;
  int heads_last;

  ZMLX_DEVICE int group() const {
    return q_heads / kv_heads;
  }
  /// Index of row r of KV head `kv_head` of a sequence among the rows of q and of the result.
  ZMLX_DEVICE int64_t row(int batch, int kv_head, int r) const {
    int token = r / group();
    int head = kv_head * group() + r % group();
    return heads_last ? (static_cast<int64_t>(batch) * tokens + token) * q_heads + head
                      : (static_cast<int64_t>(batch) * q_heads + head) * tokens + token;
  }
};

/// Keys [first(t), end(t)) that token t sees.
struct VisibleKeys {
  int causal;
  int window; // 0: none
  int capacity;
  int offset;
  int padding; // keys before this one are another sequence's length, not this one's

  ZMLX_DEVICE int first(int token) const {
    return larger(padding, window ? larger(0, offset + token + 1 - window) : 0);
  }
  ZMLX_DEVICE int end(int token) const {
    return causal ? smaller(capacity, offset + token + 1) : capacity;
  }
};

/// exp2(x - largest), where nothing seen yet (-infinity()) has no weight.
ZMLX_DEVICE float weight_of(float x, float largest) {
  return fast_exp2(x - (largest == -infinity() ? 0.0f : largest));
}

enum { mask_none, mask_bool, mask_added };

/// Blocks of 8 warps, a query row each; the warps take turns at the keys and add up at the end. The mask is [b, h, t, keys] with
/// strides in rows of mask_keys, 0 where it is broadcast.
template <typename T, int per_lane, int mask_kind>
__global__ void __launch_bounds__(256) attention_rows(
    Pointer q,
    Pointer keys,
    Pointer values,
    Pointer offset,
    Pointer positions,
    Pointer mask,
    Pointer out,
    Extent capacity,
    Extent mask_keys,
    int tokens,
    int q_heads,
    int kv_heads,
    int heads_last,
    int causal,
    int padded,
    int window,
    int mask_batch,
    int mask_head,
    int mask_token,
    int width,
    int value_width,
    float scale) {
  start_successor();
  wait_for_predecessor();
  constexpr int warps = 8;
  QueryHeads heads{tokens, q_heads, kv_heads, heads_last};
  int rows = heads.group() * tokens;
  int r = static_cast<int>(blockIdx.x) % rows;
  int kv = static_cast<int>(blockIdx.x) / rows;
  int batch = kv / kv_heads;
  int token = r / heads.group();
  int64_t row = heads.row(batch, kv % kv_heads, r);
  int room = static_cast<int>(capacity.get());
  int start = causal ? *offset.as<int32_t>() : 0;
  VisibleKeys visible{causal, window, room, start, padded ? larger(0, start - positions.as<int32_t>()[batch]) : 0};
  int lane = lane_index();

  int64_t mask_width = mask_kind ? mask_keys.get() : 0;
  int head = kv % kv_heads * heads.group() + r % heads.group();
  int64_t mask_row = static_cast<int64_t>(batch) * mask_batch + static_cast<int64_t>(head) * mask_head + token * mask_token;
  mask_row *= mask_width;

  float query[per_lane];
  float sum[per_lane];
  for (int j = 0; j < per_lane; ++j) {
    int d = lane + 32 * j;
    query[j] = d < width ? to_float(q.as<T>()[row * width + d]) * scale : 0.0f;
    sum[j] = 0;
  }
  float largest = -infinity();
  float total = 0;
  int end = visible.end(token);
  for (int key = visible.first(token) + warp_index(); key < end; key += warps) {
    const T* k = keys.as<T>() + (static_cast<int64_t>(kv) * room + key) * width;
    const T* v = values.as<T>() + (static_cast<int64_t>(kv) * room + key) * value_width;
    float score = 0;
    for (int j = 0; j < per_lane; ++j) {
      int d = lane + 32 * j;
      score += d < width ? query[j] * to_float(k[d]) : 0.0f;
    }
    score = warp_sum(score);
    int64_t mask_at = mask_row + (mask_width > 1 ? key : 0);
    if (mask_kind == mask_bool && !mask.as<uint8_t>()[mask_at]) {
      score = -3.4028234e38f; // as MLX: a row that is masked everywhere gives the mean, not NaN
    } else if (mask_kind == mask_added) {
      score += to_float(mask.as<T>()[mask_at]);
    }
    score = score == -3.4028234e38f ? score : score * log2_e;
    float now = fmaxf(largest, score);
    float fade = weight_of(largest, now);
    float weight = weight_of(score, now);
    largest = now;
    total = total * fade + weight;
    for (int j = 0; j < per_lane; ++j) {
      int d = lane + 32 * j;
      sum[j] = sum[j] * fade + (d < value_width ? weight * to_float(v[d]) : 0.0f);
    }
  }

  // Each warp's maximum, total and sums.
  auto* shared = reinterpret_cast<float*>(dynamic_shared());
  float* own = shared + warp_index() * (32 * per_lane + 2);
  for (int j = 0; j < per_lane; ++j) {
    own[2 + lane + 32 * j] = sum[j];
  }
  if (lane == 0) {
    own[0] = largest;
    own[1] = total;
  }
  sync_block();
  for (int d = static_cast<int>(threadIdx.x); d < value_width; d += 32 * warps) {
    float high = -infinity();
    for (int w = 0; w < warps; ++w) {
      high = fmaxf(high, shared[w * (32 * per_lane + 2)]);
    }
    float all = 0;
    float result = 0;
    for (int w = 0; w < warps; ++w) {
      const float* part = shared + w * (32 * per_lane + 2);
      float weight = weight_of(part[0], high);
      all += part[1] * weight;
      result += part[2 + d] * weight;
    }
    // No key seen, as in a sequence's padding, gives zero; added -infinity() everywhere gives NaN, as in MLX.
    bool unseen = mask_kind == mask_none && all == 0.0f;
    out.as<T>()[row * value_width + d] = from_float<T>(unseen ? 0.0f : result / all);
  }
}
