// zmlx/kernel/cuda/rotary.cuh: rotary position embedding by tables of cosines and sines, alone or with a KV cache's update, and
// the tables. A thread a pair of elements.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// One pair of a head of `width` elements: the first `half` pairs turn, the rest are neighbours that stay.
template <typename T, typename Table, bool traditional>
ZMLX_DEVICE void rotate_pair(const T* x, const Table* cosines, const Table* sines, int pair, int half, int width, T* out) {
  const bool turns = pair < half;
  const int a = traditional || !turns ? 2 * pair : pair;
  const int b = traditional || !turns ? 2 * pair + 1 : pair + half;
  if (turns) {
    const float c = to_float(cosines[pair]);
    const float s = to_float(sines[pair]);
    const float first = to_float(x[a]);
    const float second = to_float(x[b]);
    out[a] = from_float<T>(first * c - second * s);
    out[b] = from_float<T>(first * s + second * c);
    return;
  }
  if (a < width) {
    out[a] = x[a];
  }
  if (b < width) {
    out[b] = x[b];
  }
}

/// `inner` rows of x have one position; with per_sequence, so many rows have their own part of the tables.
template <typename T, typename Table, bool traditional>
__global__ void __launch_bounds__(256) apply_rope(
    Pointer x,
    Pointer cosines,
    Pointer sines,
    Pointer out,
    int rows,
    int width,
    int half,
    int tokens,
    int inner,
    int per_sequence) {
  start_successor();
  wait_for_predecessor();
  const int pairs = (width + 1) / 2;
  const int64_t row = thread_number() / pairs;
  if (row >= rows) {
    return;
  }
  const int64_t sequence = per_sequence ? row / per_sequence : 0;
  const int64_t place = (sequence * tokens + row / inner % tokens) * half;
  rotate_pair<T, Table, traditional>(
      x.as<T>() + row * width,
      cosines.as<Table>() + place,
      sines.as<Table>() + place,
      static_cast<int>(thread_number() % pairs),
      half,
      width,
      out.as<T>() + row * width);
}

/// The row of a [B, T, H, ..] or [B, H, T, ..] array, by its axes' extents.
template <bool heads_first>
ZMLX_DEVICE int64_t head_row(int64_t b, int64_t t, int64_t head, int64_t heads, int64_t length) {
  return heads_first ? (b * heads + head) * length + t : (b * length + t) * heads + head;
}

/// Rows are (token, head): a token's q heads, then its k heads, then its v heads. A plain cache is one in blocks of which sequence b
/// has block b alone. There is nobody to tell about a position that
/// the tables or the cache have no room for: its queries are NaN and the cache stays.
template <typename T, typename Table, bool traditional, bool heads_first, bool paged>
__global__ void __launch_bounds__(256) rope_cache_update(
    Pointer q,
    Pointer k,
    Pointer v,
    Pointer cosines,
    Pointer sines,
    Pointer offset,
    Pointer table,
    Pointer out,
    Pointer keys,
    Pointer values,
    Extent block_size,
    int rows,
    int tokens,
    int q_heads,
    int kv_heads,
    int width,
    int value_width,
    int half,
    int positions,
    int blocks,
    int table_blocks,
    int own_offsets) {
  start_successor();
  wait_for_predecessor();
  const int pairs = ((width > value_width ? width : value_width) + 1) / 2;
  const int64_t row = thread_number() / pairs;
  const int pair = static_cast<int>(thread_number() % pairs);
  if (row >= rows) {
    return;
  }
  const int heads = q_heads + 2 * kv_heads;
  const int64_t b = row / heads / tokens;
  const int64_t t = row / heads % tokens;
  int64_t head = row % heads;
  const int64_t size = block_size.get();
  const int64_t position = offset.as<int32_t>()[own_offsets ? b : 0] + t;
  bool fits = position >= 0 && position < positions && position < table_blocks * size;
  const int64_t in_tables = (fits ? position : 0) * half;
  if (head < q_heads) {
    const int64_t at = head_row<heads_first>(b, t, head, q_heads, tokens) * width;
    T* to = out.as<T>() + at;
    if (fits) {
      rotate_pair<T, Table, traditional>(
          q.as<T>() + at, cosines.as<Table>() + in_tables, sines.as<Table>() + in_tables, pair, half, width, to);
      return;
    }
    for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
      if (i < width) {
        to[i] = from_float<T>(not_a_number());
      }
    }
    return;
  }
  int64_t block = b;
  int64_t place = position;
  if (paged && fits) {
    block = table.as<int32_t>()[b * table_blocks + position / size];
    place = position % size;
    fits = block >= 0 && block < blocks;
  }
  if (!fits) {
    return;
  }
  head -= q_heads;
  const bool is_key = head < kv_heads;
  head -= is_key ? 0 : kv_heads;
  const int64_t from = head_row<heads_first>(b, t, head, kv_heads, tokens);
  const int64_t to = head_row<heads_first>(block, place, head, kv_heads, size);
  if (is_key) {
    rotate_pair<T, Table, traditional>(
        k.as<T>() + from * width,
        cosines.as<Table>() + in_tables,
        sines.as<Table>() + in_tables,
        pair,
        half,
        width,
        keys.as<T>() + to * width);
    return;
  }
  for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
    if (i < value_width) {
      values.as<T>()[to * value_width + i] = v.as<T>()[from * value_width + i];
    }
  }
}

/// cos and sin of (offset + t) * scale * inv_freq[i].
__global__ void __launch_bounds__(256)
    rope_tables(Pointer offset, Pointer inv_freq, Pointer cosines, Pointer sines, int rows, int tokens, int half, float scale) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = thread_number() / half;
  if (row >= rows) {
    return;
  }
  const float at = static_cast<float>(offset.as<int32_t>()[row / tokens] + row % tokens) * scale;
  const float angle = at * inv_freq.as<float>()[thread_number() % half];
  cosines.as<float>()[thread_number()] = cosf(angle);
  sines.as<float>()[thread_number()] = sinf(angle);
}
