// zmlx/kernel/cuda/attention_split.cuh: attention of a few tokens. The keys are dealt out in tiles of 16 to the warps of all
// splits, and a second launch merges what the splits found.
#pragma once

#include "zmlx/kernel/cuda/attention.cuh"

inline constexpr int split_warps = 4;
inline constexpr int split_stages = 3; // tiles that a warp has under way, the one in use included

/// Tiles of 16 keys that a tile of query rows sees.
struct KeyTiles {
  int begin; // first key, a multiple of 16
  int count;

  /// Splits that have any; the first stands for none at all.
  ZMLX_DEVICE int splits(int most) const {
    return larger(1, smaller(most, (count + split_warps - 1) / split_warps));
  }
};

ZMLX_DEVICE KeyTiles key_tiles(const VisibleKeys& visible, int first_token, int last_token) {
  int begin = visible.first(first_token) / 16 * 16;
  return {begin, larger(0, visible.end(last_token) - begin + 15) / 16};
}

/// Copies of one tile of keys and values, zeros where no row is valid.
template <typename T, int width, int value_width>
ZMLX_DEVICE void copy_key_tile(uint8_t* shared, const T* keys, const T* values, int first, int begin, int end) {
  T* k = reinterpret_cast<T*>(shared);
  T* v = k + 16 * (width + 8);
  constexpr int k_pieces = width / 8;
  constexpr int v_pieces = value_width / 8;
  for (int i = lane_index(); i < 16 * k_pieces; i += 32) {
    int key = first + i / k_pieces;
    bool valid = key >= begin && key < end;
    int64_t from = static_cast<int64_t>(valid ? key : begin) * width + i % k_pieces * 8;
    copy_async16(k + i / k_pieces * (width + 8) + i % k_pieces * 8, keys + from, valid);
  }
  for (int i = lane_index(); i < 16 * v_pieces; i += 32) {
    int key = first + i / v_pieces;
    bool valid = key >= begin && key < end;
    int64_t from = static_cast<int64_t>(valid ? key : begin) * value_width + i % v_pieces * 8;
    copy_async16(v + i / v_pieces * (value_width + 8) + i % v_pieces * 8, values + from, valid);
  }
}

/// Row r of the result from the parts of `splits` splits, at most 64; a warp.
template <typename T, int value_width>
ZMLX_DEVICE void merge_row(const float* parts, int splits, int r, T* result) {
  constexpr int part_floats = 16 * (value_width + 2);
  // Lane i weighs splits i and i + 32.
  float weight[2] = {-infinity(), -infinity()};
  float total[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int split = lane_index() + 32 * i;
    if (split < splits) {
      const float* at = parts + split * part_floats + 16 * value_width + r;
      weight[i] = load_fresh(at);
      total[i] = load_fresh(at + 16);
    }
  }
  const float high = warp_max(fmaxf(weight[0], weight[1]));
  weight[0] = weight_of(weight[0], high);
  weight[1] = weight_of(weight[1], high);
  const float all = warp_sum(weight[0] * total[0] + weight[1] * total[1]);
  constexpr int pieces = (value_width + 127) / 128; // of 4 elements a lane
  float x[pieces][4] = {};
#pragma unroll 1
  for (int first = 0; first < splits; first += 8) {
    uint4 words[8][pieces];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int d = 4 * lane_index() + 128 * p;
        const auto* at = reinterpret_cast<const uint4*>(parts + (first + i) * part_floats + r * value_width + d);
        words[i][p] = first + i < splits && d < value_width ? load_fresh(at) : uint4{0, 0, 0, 0};
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float w = shuffle(first < 32 ? weight[0] : weight[1], (first + i) % 32);
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const uint4 word = words[i][p];
        const float v[4] = {bits_to_float(word.x), bits_to_float(word.y), bits_to_float(word.z), bits_to_float(word.w)};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          x[p][e] += first + i < splits ? w * v[e] : 0.0f;
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < pieces; ++p) {
    const int d = 4 * lane_index() + 128 * p;
    if (d < value_width) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        result[d + e] = from_float<T>(all == 0.0f ? 0.0f : x[p][e] / all);
      }
    }
  }
}

/// Blocks (split, tile of 16 query rows, sequence and KV head). Where several splits have keys, each leaves a part of
/// 16 * (value_width + 2) floats: sums, maxima (of scores times log2 e), totals; a counter for each tile says which comes last.
template <typename T, int width, int value_width>
__global__ void __launch_bounds__(128) attention_split(
    Pointer q,
    Pointer keys,
    Pointer values,
    Pointer offset,
    Pointer positions,
    Pointer out,
    Pointer parts,
    Pointer counters,
    Extent capacity,
    int tokens,
    int q_heads,
    int kv_heads,
    int heads_last,
    int causal,
    int padded,
    int window,
    float scale) {
  start_successor();
  constexpr int stage_bytes = 16 * (width + value_width + 16) * 2;
  QueryHeads heads{tokens, q_heads, kv_heads, heads_last};
  int splits = static_cast<int>(gridDim.x);
  int kv = static_cast<int>(blockIdx.z);
  int batch = kv / kv_heads;
  int first_row = static_cast<int>(blockIdx.y) * 16;
  int rows = smaller(16, heads.group() * tokens - first_row);
  int first_token = first_row / heads.group();
  int last_token = (first_row + rows - 1) / heads.group();
  VisibleKeys visible{causal, window, static_cast<int>(capacity.get()), causal ? *offset.as<int32_t>() : 0, 0};
  int lane = lane_index();
  int warp = warp_index();
  uint8_t* own = dynamic_shared() + warp * split_stages * stage_bytes;
  const T* k_rows = keys.as<T>() + static_cast<int64_t>(kv) * visible.capacity * width;
  const T* v_rows = values.as<T>() + static_cast<int64_t>(kv) * visible.capacity * value_width;
  int place = static_cast<int>(blockIdx.x) * split_warps + warp;
  int stride = splits * split_warps;
  auto tiles = key_tiles(visible, first_token, last_token);

  // Rows of the cache before the offset are older than the launch before this one.
  int under_way = 0;
  if (causal && !padded) {
    for (; under_way < split_stages - 1; ++under_way) {
      int tile = place + under_way * stride;
      int from = tiles.begin + tile * 16;
      if (tile >= tiles.count || from + 16 > visible.offset) {
        break;
      }
      copy_key_tile<T, width, value_width>(
          own + under_way * stage_bytes, k_rows, v_rows, from, visible.first(first_token), visible.end(last_token));
      commit_copies();
    }
  }
  wait_for_predecessor();
  if (padded) {
    visible.padding = larger(0, visible.offset - positions.as<int32_t>()[batch]);
    tiles = key_tiles(visible, first_token, last_token);
  }
  const int used = tiles.splits(splits);
  if (static_cast<int>(blockIdx.x) >= used) {
    return;
  }
  int begin = visible.first(first_token);
  int end = visible.end(last_token);
  for (; under_way < split_stages - 1; ++under_way) {
    int tile = place + under_way * stride;
    if (tile < tiles.count) {
      copy_key_tile<T, width, value_width>(
          own + under_way * stage_bytes, k_rows, v_rows, tiles.begin + tile * 16, begin, end);
    }
    commit_copies();
  }

  int g = lane / 4;
  int t2 = lane % 4 * 2;
  uint32_t query[width / 16][4];
  int row_first[2];
  int row_end[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int r = g + 8 * half;
    bool valid = r < rows;
    int token = (first_row + (valid ? r : 0)) / heads.group();
    row_first[half] = visible.first(token);
    row_end[half] = visible.end(token);
    const T* from = q.as<T>() + heads.row(batch, kv % kv_heads, first_row + (valid ? r : 0)) * width;
#pragma unroll
    for (int i = 0; i < width / 16; ++i) {
      query[i][half] = valid ? *reinterpret_cast<const uint32_t*>(from + 16 * i + t2) : 0u;
      query[i][half + 2] = valid ? *reinterpret_cast<const uint32_t*>(from + 16 * i + 8 + t2) : 0u;
    }
  }

  float to_log2 = scale * log2_e;
  float sum[value_width / 8][4] = {};
  float largest[2] = {-infinity(), -infinity()};
  float total[2] = {0, 0};
  int stage = 0;
  for (int tile = place; tile < tiles.count; tile += stride) {
    wait_for_copies<split_stages - 2>();
    sync_warp();
    int next = tile + (split_stages - 1) * stride;
    if (next < tiles.count) {
      copy_key_tile<T, width, value_width>(
          own + (stage + split_stages - 1) % split_stages * stage_bytes,
          k_rows,
          v_rows,
          tiles.begin + next * 16,
          begin,
          end);
    }
    commit_copies();
    const T* k = reinterpret_cast<const T*>(own + stage * stage_bytes);
    const T* v = k + 16 * (width + 8);
    stage = (stage + 1) % split_stages;

    float scores[2][4] = {};
    const T* k_at = k + (lane % 8 + lane / 16 * 8) * (width + 8) + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < width / 16; ++i) {
      uint32_t d[4];
      load_tiles(d, k_at + 16 * i);
      multiply_add<T>(scores[0], query[i], {d[0], d[1]});
      multiply_add<T>(scores[1], query[i], {d[2], d[3]});
    }
    int key = tiles.begin + tile * 16 + t2;
    float fade[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float now = largest[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = scores[i / 2][2 * half + i % 2];
        int at = key + i / 2 * 8 + i % 2;
        s = at >= row_first[half] && at < row_end[half] ? s * to_log2 : -infinity();
        now = fmaxf(now, s);
      }
      now = fmaxf(now, shuffle_xor(now, 1));
      now = fmaxf(now, shuffle_xor(now, 2));
      fade[half] = weight_of(largest[half], now);
      largest[half] = now;
      total[half] *= fade[half];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& s = scores[i / 2][2 * half + i % 2];
        s = weight_of(s, now);
        total[half] += s;
      }
    }
    uint32_t weights[4] = {
        pack2<T>(scores[0][0], scores[0][1]),
        pack2<T>(scores[0][2], scores[0][3]),
        pack2<T>(scores[1][0], scores[1][1]),
        pack2<T>(scores[1][2], scores[1][3])};
    const T* v_at = v + lane % 16 * (value_width + 8) + lane / 16 * 8;
#pragma unroll
    for (int i = 0; i < value_width / 16; ++i) {
      uint32_t d[4];
      load_tiles_transposed(d, v_at + 16 * i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        auto& s = sum[2 * i + j];
        s[0] *= fade[0];
        s[1] *= fade[0];
        s[2] *= fade[1];
        s[3] *= fade[1];
        multiply_add<T>(s, weights, {d[2 * j], d[2 * j + 1]});
      }
    }
  }
  wait_for_copies<0>();
  sync_warp();

  // The warps' shares, where their tiles were.
  float* share = reinterpret_cast<float*>(own);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int r = g + 8 * half;
    float all = total[half] + shuffle_xor(total[half], 1);
    all += shuffle_xor(all, 2);
    if (lane % 4 == 0) {
      share[16 * value_width + r] = largest[half];
      share[16 * value_width + 16 + r] = all;
    }
#pragma unroll
    for (int i = 0; i < value_width / 8; ++i) {
      share[r * value_width + 8 * i + t2] = sum[i][2 * half];
      share[r * value_width + 8 * i + t2 + 1] = sum[i][2 * half + 1];
    }
  }
  sync_block();
  const auto* shares = reinterpret_cast<const float*>(dynamic_shared());
  constexpr int share_floats = split_stages * stage_bytes / 4;
  const int tile_index = kv * static_cast<int>(gridDim.y) + static_cast<int>(blockIdx.y);
  constexpr int part_floats = 16 * (value_width + 2);
  float* first_part = parts.as<float>() + static_cast<int64_t>(tile_index) * splits * part_floats;
  float* part = first_part + blockIdx.x * part_floats;
  for (int r = warp; r < rows; r += split_warps) {
    float weight[split_warps];
    float high = -infinity();
    for (int w = 0; w < split_warps; ++w) {
      weight[w] = shares[w * share_floats + 16 * value_width + r];
      high = fmaxf(high, weight[w]);
    }
    float all = 0;
    for (int w = 0; w < split_warps; ++w) {
      weight[w] = weight_of(weight[w], high);
      all += weight[w] * shares[w * share_floats + 16 * value_width + 16 + r];
    }
    if (used > 1 && lane == 0) {
      part[16 * value_width + r] = high;
      part[16 * value_width + 16 + r] = all;
    }
    T* result = out.as<T>() + heads.row(batch, kv % kv_heads, first_row + r) * value_width;
    for (int d = lane; d < value_width; d += 32) {
      float x = 0;
      for (int w = 0; w < split_warps; ++w) {
        x += weight[w] * shares[w * share_floats + r * value_width + d];
      }
      if (used > 1) {
        part[r * value_width + d] = x;
      } else {
        result[d] = from_float<T>(all == 0.0f ? 0.0f : x / all);
      }
    }
  }
  if (used > 1 && is_last_block(counters.as<int>() + tile_index, used)) {
    for (int r = warp; r < rows; r += split_warps) {
      merge_row<T, value_width>(
          first_part, used, r, out.as<T>() + heads.row(batch, kv % kv_heads, first_row + r) * value_width);
    }
  }
}
