// zmlx/kernel/cuda/attention_prompt.cuh: attention of many tokens on tensor cores, one pass over the keys (Dao, 2023).
#pragma once

#include "zmlx/kernel/cuda/attention.cuh"

inline constexpr int prompt_warps = 4;
inline constexpr int prompt_keys = 64; // keys of a tile

/// Copies rows [first, first + count) of `width` values to shared rows of width + 8, zeros for those outside [begin, end).
template <typename T, int width, int count>
ZMLX_DEVICE void copy_cache_rows(T* shared, const T* rows, int first, int begin, int end) {
  constexpr int pieces = width / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < count * pieces; i += 32 * prompt_warps) {
    int row = first + i / pieces;
    bool valid = row >= begin && row < end;
    int64_t from = static_cast<int64_t>(valid ? row : begin) * width + i % pieces * 8;
    copy_async16(shared + i / pieces * (width + 8) + i % pieces * 8, rows + from, valid);
  }
}

/// Blocks (tile of 64 * row_tiles query rows, last first as they see most keys; sequence and KV head). A warp has row_tiles times
/// 16 rows, so that what it reads of keys and values serves all of them.
template <typename T, int width, int value_width, int row_tiles>
__global__ void __launch_bounds__(32 * prompt_warps) attention_prompt(
    Pointer q,
    Pointer keys,
    Pointer values,
    Pointer offset,
    Pointer positions,
    Pointer out,
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
  constexpr int block_rows = 16 * row_tiles * prompt_warps;
  QueryHeads heads{tokens, q_heads, kv_heads, heads_last};
  int kv = static_cast<int>(blockIdx.y);
  int batch = kv / kv_heads;
  int group = heads.group();
  int first_row = static_cast<int>(gridDim.x - 1 - blockIdx.x) * block_rows;
  int rows = smaller(block_rows, group * tokens - first_row);
  int first_token = first_row / group;
  int last_token = (first_row + rows - 1) / group;
  wait_for_predecessor();
  VisibleKeys visible{causal, window, static_cast<int>(capacity.get()), causal ? *offset.as<int32_t>() : 0, 0};
  if (padded) {
    visible.padding = larger(0, visible.offset - positions.as<int32_t>()[batch]);
  }
  int begin = visible.first(first_token);
  int end = visible.end(last_token);
  const T* k_rows = keys.as<T>() + static_cast<int64_t>(kv) * visible.capacity * width;
  const T* v_rows = values.as<T>() + static_cast<int64_t>(kv) * visible.capacity * value_width;

  T* q_tile = reinterpret_cast<T*>(dynamic_shared());
  T* k_tile = q_tile + block_rows * (width + 8);
  T* v_tile = k_tile + prompt_keys * (width + 8);
  for (int i = static_cast<int>(threadIdx.x); i < block_rows * (width / 8); i += 32 * prompt_warps) {
    int r = i / (width / 8);
    int d = i % (width / 8) * 8;
    bool valid = r < rows;
    const T* from = q.as<T>() + heads.row(batch, kv % kv_heads, first_row + (valid ? r : 0)) * width + d;
    copy_async16(q_tile + r * (width + 8) + d, from, valid);
  }
  int from = begin / prompt_keys * prompt_keys;
  copy_cache_rows<T, width, prompt_keys>(k_tile, k_rows, from, begin, end);
  commit_copies();

  int lane = lane_index();
  int t2 = lane % 4 * 2;
  int warp_row = warp_index() * 16 * row_tiles;
  float to_log2 = scale * log2_e;
  float sum[row_tiles][value_width / 8][4] = {};
  float largest[row_tiles][2];
  float total[row_tiles][2];
#pragma unroll
  for (int m = 0; m < row_tiles; ++m) {
    largest[m][0] = largest[m][1] = -infinity();
    total[m][0] = total[m][1] = 0;
  }
  const T* q_at = q_tile + (warp_row + lane % 16) * (width + 8) + lane / 16 * 8;
  const T* k_at = k_tile + (lane % 8 + lane / 16 * 8) * (width + 8) + lane / 8 % 2 * 8;
  const T* v_at = v_tile + lane % 16 * (value_width + 8) + lane / 16 * 8;

  for (; from < end; from += prompt_keys) {
    wait_for_copies<0>();
    sync_block();
    copy_cache_rows<T, value_width, prompt_keys>(v_tile, v_rows, from, begin, end);
    commit_copies();
    float scores[row_tiles][prompt_keys / 8][4] = {};
#pragma unroll
    for (int i = 0; i < width / 16; ++i) {
      uint32_t a[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        load_tiles(a[m], q_at + m * 16 * (width + 8) + 16 * i);
      }
#pragma unroll
      for (int n = 0; n < prompt_keys / 16; ++n) {
        uint32_t b[4];
        load_tiles(b, k_at + n * 16 * (width + 8) + 16 * i);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add<T>(scores[m][2 * n], a[m], {b[0], b[1]});
          multiply_add<T>(scores[m][2 * n + 1], a[m], {b[2], b[3]});
        }
      }
    }
    wait_for_copies<0>();
    sync_block();
    if (from + prompt_keys < end) {
      copy_cache_rows<T, width, prompt_keys>(k_tile, k_rows, from + prompt_keys, begin, end);
    }
    commit_copies();

    bool hidden = from < visible.first(last_token) || from + prompt_keys > visible.end(first_token);
#pragma unroll
    for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (hidden) {
          int r = first_row + smaller(rows - 1, warp_row + 16 * m + 8 * half + lane / 4);
          int row_first = visible.first(r / group);
          int row_end = visible.end(r / group);
#pragma unroll
          for (int n = 0; n < prompt_keys / 4; ++n) {
            int key = from + n / 2 * 8 + n % 2 + t2;
            float& s = scores[m][n / 2][2 * half + n % 2];
            s = key >= row_first && key < row_end ? s : -infinity();
          }
        }
        float now = -infinity();
#pragma unroll
        for (int n = 0; n < prompt_keys / 4; ++n) {
          now = fmaxf(now, scores[m][n / 2][2 * half + n % 2]);
        }
        now = fmaxf(now, shuffle_xor(now, 1));
        now = fmaxf(now, shuffle_xor(now, 2));
        now = fmaxf(largest[m][half], now * to_log2);
        float fade = weight_of(largest[m][half], now);
        largest[m][half] = now;
        float base = now == -infinity() ? 0.0f : now;
        float all = 0;
#pragma unroll
        for (int n = 0; n < prompt_keys / 4; ++n) {
          float& s = scores[m][n / 2][2 * half + n % 2];
          s = fast_exp2(s * to_log2 - base);
          all += s;
        }
        total[m][half] = total[m][half] * fade + all;
#pragma unroll
        for (int d = 0; d < value_width / 8; ++d) {
          sum[m][d][2 * half] *= fade;
          sum[m][d][2 * half + 1] *= fade;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < prompt_keys / 16; ++n) {
      uint32_t a[row_tiles][4];
#pragma unroll
      for (int m = 0; m < row_tiles; ++m) {
        a[m][0] = pack2<T>(scores[m][2 * n][0], scores[m][2 * n][1]);
        a[m][1] = pack2<T>(scores[m][2 * n][2], scores[m][2 * n][3]);
        a[m][2] = pack2<T>(scores[m][2 * n + 1][0], scores[m][2 * n + 1][1]);
        a[m][3] = pack2<T>(scores[m][2 * n + 1][2], scores[m][2 * n + 1][3]);
      }
#pragma unroll
      for (int d = 0; d < value_width / 16; ++d) {
        uint32_t b[4];
        load_tiles_transposed(b, v_at + n * 16 * (value_width + 8) + 16 * d);
#pragma unroll
        for (int m = 0; m < row_tiles; ++m) {
          multiply_add<T>(sum[m][2 * d], a[m], {b[0], b[1]});
          multiply_add<T>(sum[m][2 * d + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }
  wait_for_copies<0>();

#pragma unroll
  for (int m = 0; m < row_tiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int r = warp_row + 16 * m + 8 * half + lane / 4;
      float all = total[m][half] + shuffle_xor(total[m][half], 1);
      all += shuffle_xor(all, 2);
      float inverse = all == 0.0f ? 0.0f : 1.0f / all;
      if (r < rows) {
        T* to = out.as<T>() + heads.row(batch, kv % kv_heads, first_row + r) * value_width + t2;
#pragma unroll
        for (int d = 0; d < value_width / 8; ++d) {
          *reinterpret_cast<uint32_t*>(to + 8 * d) =
              pack2<T>(sum[m][d][2 * half] * inverse, sum[m][d][2 * half + 1] * inverse);
        }
      }
    }
  }
}
