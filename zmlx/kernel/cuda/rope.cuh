// zmlx/kernel/cuda/rope.cuh: rotary position embedding of heads, alone or with RMS norm and the KV cache's update, and the
// causal mask. One warp a row.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// x as it is once stored as T, where `exact` asks for the roundings of separate operations.
template <typename T, bool exact>
ZMLX_DEVICE float rounded(float x) {
  return exact ? to_float(from_float<T>(x)) : x;
}

/// Pairs of elements of one head, lane + 32 j for j < per_lane. The first dims / 2 are rotated; the rest are neighbours.
template <int per_lane>
struct HeadPairs {
  float a[per_lane];
  float b[per_lane];
};

template <bool traditional>
ZMLX_DEVICE int first_of_pair(int pair, int dims) {
  return traditional || pair >= dims / 2 ? 2 * pair : pair;
}
template <bool traditional>
ZMLX_DEVICE int second_of_pair(int pair, int dims) {
  return traditional || pair >= dims / 2 ? 2 * pair + 1 : pair + dims / 2;
}

template <typename T, bool traditional, int per_lane>
ZMLX_DEVICE HeadPairs<per_lane> load_pairs(const T* x, int width, int dims) {
  HeadPairs<per_lane> pairs;
  for (int j = 0; j < per_lane; ++j) {
    int pair = lane_index() + 32 * j;
    int a = first_of_pair<traditional>(pair, dims);
    int b = second_of_pair<traditional>(pair, dims);
    pairs.a[j] = a < width ? to_float(x[a]) : 0.0f;
    pairs.b[j] = b < width ? to_float(x[b]) : 0.0f;
  }
  return pairs;
}

template <typename T, bool traditional, int per_lane>
ZMLX_DEVICE void store_pairs(const HeadPairs<per_lane>& pairs, T* out, int width, int dims) {
  for (int j = 0; j < per_lane; ++j) {
    int pair = lane_index() + 32 * j;
    int a = first_of_pair<traditional>(pair, dims);
    int b = second_of_pair<traditional>(pair, dims);
    if (a < width) {
      out[a] = from_float<T>(pairs.a[j]);
    }
    if (b < width) {
      out[b] = from_float<T>(pairs.b[j]);
    }
  }
}

/// x / rms(x) * weight.
template <typename T, bool exact, int per_lane>
ZMLX_DEVICE void normalise(HeadPairs<per_lane>& x, const HeadPairs<per_lane>& weight, int width, float eps) {
  float squares = 0;
  for (int j = 0; j < per_lane; ++j) {
    squares += x.a[j] * x.a[j] + x.b[j] * x.b[j];
  }
  float inverse = inverse_sqrt(warp_sum(squares) / static_cast<float>(width) + eps);
  for (int j = 0; j < per_lane; ++j) {
    x.a[j] = rounded<T, exact>(rounded<T, exact>(x.a[j] * inverse) * weight.a[j]);
    x.b[j] = rounded<T, exact>(rounded<T, exact>(x.b[j] * inverse) * weight.b[j]);
  }
}

/// Cosines (a) and sines (b) of a position's angles; a pair that is not rotated has angle 0. Full-range sine and cosine:
/// angles reach the position itself.
template <typename T, bool exact, int per_lane>
ZMLX_DEVICE HeadPairs<per_lane> turn_to(int position, const float* inv_freq, int dims, float scale) {
  HeadPairs<per_lane> turn;
  float at = static_cast<float>(position) * scale;
  for (int j = 0; j < per_lane; ++j) {
    int pair = lane_index() + 32 * j;
    float angle = pair < dims / 2 ? at * inv_freq[pair] : 0.0f;
    turn.a[j] = rounded<T, exact>(cosf(angle));
    turn.b[j] = rounded<T, exact>(sinf(angle));
  }
  return turn;
}

template <typename T, bool exact, int per_lane>
ZMLX_DEVICE void rotate(HeadPairs<per_lane>& x, const HeadPairs<per_lane>& turn, int dims) {
  for (int j = 0; j < per_lane; ++j) {
    if (lane_index() + 32 * j < dims / 2) {
      float a = rounded<T, exact>(x.a[j] * turn.a[j]) - rounded<T, exact>(x.b[j] * turn.b[j]);
      float b = rounded<T, exact>(x.a[j] * turn.b[j]) + rounded<T, exact>(x.b[j] * turn.a[j]);
      x.a[j] = a;
      x.b[j] = b;
    }
  }
}

/// x [B, H, T, D]; offset one number, or one a sequence when own_offsets is not 0.
template <typename T, bool traditional, bool exact, int per_lane>
__global__ void __launch_bounds__(128) rope_rows(
    Pointer x,
    Pointer offset,
    Pointer inv_freq,
    Pointer out,
    int rows,
    int heads,
    int tokens,
    int width,
    int dims,
    int own_offsets,
    float scale) {
  start_successor();
  wait_for_predecessor();
  int row = static_cast<int>(blockIdx.x) * 4 + warp_index();
  if (row >= rows) {
    return;
  }
  int first = offset.as<int32_t>()[own_offsets ? row / tokens / heads : 0];
  auto turn = turn_to<T, exact, per_lane>(first + row % tokens, inv_freq.as<float>(), dims, scale);
  int64_t at = static_cast<int64_t>(row) * width;
  auto pairs = load_pairs<T, traditional, per_lane>(x.as<T>() + at, width, dims);
  rotate<T, exact>(pairs, turn, dims);
  store_pairs<T, traditional>(pairs, out.as<T>() + at, width, dims);
}

/// Rows are (token, head): a token's q heads, then its k heads, then its v heads. The offset, the frequencies and the norms'
/// weights are there before the graph starts.
template <typename T, bool traditional, bool exact, bool norm, bool padded, int per_lane>
__global__ void __launch_bounds__(128) rope_kv_update_rows(
    Pointer q,
    Pointer k,
    Pointer v,
    Pointer q_norm,
    Pointer k_norm,
    Pointer inv_freq,
    Pointer offset,
    Pointer positions,
    Pointer out,
    Pointer keys,
    Pointer values,
    Extent capacity,
    int rows,
    int tokens,
    int q_heads,
    int kv_heads,
    int width,
    int value_width,
    int dims,
    float scale,
    float eps) {
  int row = static_cast<int>(blockIdx.x) * 4 + warp_index();
  int heads = q_heads + 2 * kv_heads;
  int head = row % heads;
  int token = row / heads;
  int batch = token / tokens;
  int t = token % tokens;
  bool is_q = head < q_heads;
  bool is_v = head >= q_heads + kv_heads;
  int first = *offset.as<int32_t>();
  HeadPairs<per_lane> weight;
  HeadPairs<per_lane> turn;
  if (!is_v && row < rows) {
    if (norm) {
      weight = load_pairs<T, traditional, per_lane>((is_q ? q_norm : k_norm).as<T>(), width, dims);
    }
    if (!padded) {
      turn = turn_to<T, exact, per_lane>(first + t, inv_freq.as<float>(), dims, scale);
    }
  }
  wait_for_predecessor();
  start_successor(); // not before: attention counts on what came before this launch
  if (row >= rows) {
    return;
  }
  bool fits = first >= 0 && first + t < capacity.get();
  int kv_head = (head - q_heads) % kv_heads;
  int64_t cache_row = (static_cast<int64_t>(batch) * kv_heads + kv_head) * capacity.get() + first + t;
  if (is_v) {
    const T* from = v.as<T>() + (static_cast<int64_t>(token) * kv_heads + kv_head) * value_width;
    for (int i = lane_index(); fits && i < value_width; i += 32) {
      values.as<T>()[cache_row * value_width + i] = from[i];
    }
    return;
  }
  int64_t at = is_q ? static_cast<int64_t>(token) * q_heads + head : static_cast<int64_t>(token) * kv_heads + kv_head;
  auto pairs = load_pairs<T, traditional, per_lane>((is_q ? q : k).as<T>() + at * width, width, dims);
  if (padded) {
    turn = turn_to<T, exact, per_lane>(positions.as<int32_t>()[batch] + t, inv_freq.as<float>(), dims, scale);
  }
  if (norm) {
    normalise<T, exact>(pairs, weight, width, eps);
  }
  rotate<T, exact>(pairs, turn, dims);
  if (is_q) {
    store_pairs<T, traditional>(pairs, out.as<T>() + at * width, width, dims);
  } else if (fits) {
    store_pairs<T, traditional>(pairs, keys.as<T>() + cache_row * width, width, dims);
  }
}

/// Rows x [heads, tokens] of `units` Units each into the buffer [heads, capacity] from row `offset` on.
template <typename Unit>
__global__ void __launch_bounds__(128)
    kv_update_rows(Pointer x, Pointer offset, Pointer buffer, Extent capacity, int rows, int tokens, int units) {
  start_successor();
  wait_for_predecessor();
  int row = static_cast<int>(blockIdx.x) * 4 + warp_index();
  int64_t place = *offset.as<int32_t>() + row % tokens;
  if (row >= rows || place < 0 || place >= capacity.get()) {
    return;
  }
  const Unit* from = x.as<Unit>() + static_cast<int64_t>(row) * units;
  Unit* to = buffer.as<Unit>() + (row / tokens * capacity.get() + place) * units;
  for (int i = lane_index(); i < units; i += 32) {
    to[i] = from[i];
  }
}

/// bool [rows, capacity]; rows are (sequence, token). Blocks are (256 keys, row).
template <bool padded>
__global__ void __launch_bounds__(256)
    causal_mask_rows(Pointer offset, Pointer positions, Pointer out, int tokens, int capacity, int window) {
  start_successor();
  wait_for_predecessor();
  int row = static_cast<int>(blockIdx.x);
  int key = static_cast<int>(blockIdx.y * 256 + threadIdx.x);
  int first = *offset.as<int32_t>();
  int last = first + row % tokens;
  bool seen = key <= last && (window == 0 || key > last - window);
  if (padded) {
    seen = seen && key >= first - positions.as<int32_t>()[row / tokens];
  }
  if (key < capacity) {
    out.as<uint8_t>()[static_cast<int64_t>(row) * capacity + key] = seen ? 1 : 0;
  }
}
