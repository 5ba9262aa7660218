// zmlx/kernel/cpu/attention-inl.h: attention with an online softmax. Included once for each
// instruction set.
#include <cmath>
#include <limits>

#include "hwy/cache_control.h"

#include "zmlx/kernel/cpu/attention.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/runtime/team.h"

#ifndef ZMLX_KERNEL_CPU_ATTENTION_INPUT_
#define ZMLX_KERNEL_CPU_ATTENTION_INPUT_
namespace zmlx::cpu {

/// The arrays of one call.
struct AttentionInput {
  const Tensor& q;
  const Tensor& keys;
  const Tensor& values;
  int64_t offset; // row of the first token's key, when causal
  const int32_t* positions; // of each sequence's first token, when padded
  const Tensor* mask;
  const Tensor& out;
  float* scratch;
};

/// A block of rows of one KV head against keys [begin, end).
struct Piece {
  int64_t batch;
  int64_t kv_head;
  int64_t first_row;
  int64_t rows;
  int64_t begin;
  int64_t end;
};

} // namespace zmlx::cpu
#endif

#if defined(ZMLX_KERNEL_CPU_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_ATTENTION_INL_H_
#undef ZMLX_KERNEL_CPU_ATTENTION_INL_H_
#else
#define ZMLX_KERNEL_CPU_ATTENTION_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

using cpu::Attention;
using cpu::AttentionInput;
using cpu::Piece;

inline constexpr float infinity = std::numeric_limits<float>::infinity();

/// First element of a row (token, query head) in q or in the output.
HWY_INLINE int64_t row_start(const Attention& op, const Piece& at, int64_t row, int64_t width) {
  const int64_t t = row / op.group();
  const int64_t head = at.kv_head * op.group() + row % op.group();
  return (op.heads_last ? (at.batch * op.tokens + t) * op.q_heads + head
                        : (at.batch * op.q_heads + head) * op.tokens + t) *
      width;
}

/// Keys that some row of the piece sees, those in its sequence's left padding left out.
HWY_INLINE Range seen(const Attention& op, const AttentionInput& in, const Piece& at) {
  if (op.mask != cpu::MaskKind::causal) {
    return {0, in.keys.shape()[2]};
  }
  const int64_t first_token = in.offset + at.first_row / op.group();
  const int64_t end = in.offset + (at.first_row + at.rows - 1) / op.group() + 1;
  int64_t begin = op.window ? first_token - op.window + 1 : 0;
  if (op.padded) {
    begin = std::max(begin, in.offset - in.positions[at.batch]);
  }
  return {std::clamp<int64_t>(begin, 0, end), end};
}

/// Keys in each chunk of a range: whole tiles, so that the cut depends on the range alone.
HWY_INLINE int64_t chunk_keys(const Attention& op, Range keys) {
  const int64_t each = (keys.end - keys.begin + op.splits() - 1) / op.splits();
  const int64_t tiles = (each + Attention::tile - 1) / Attention::tile;
  return std::max(tiles * Attention::tile, Attention::min_chunk);
}
HWY_INLINE int64_t chunk_count(const Attention& op, Range keys) {
  if (op.splits() == 1) {
    return 1;
  }
  const int64_t each = chunk_keys(op, keys);
  return std::max<int64_t>(1, (keys.end - keys.begin + each - 1) / each);
}

/// Applies a mask array to the scores of one row: score i of key first_key + i at s[i * step].
template <typename T>
void mask_row(
    const Attention& op,
    const Tensor& mask,
    const Piece& at,
    int64_t row,
    int64_t first_key,
    size_t count,
    float* s,
    size_t step) {
  const Shape& shape = mask.shape();
  const int64_t index[4] = {
      at.batch, at.kv_head * op.group() + row % op.group(), row / op.group(), first_key};
  int64_t start = 0;
  for (int i = 0; i < shape.rank(); ++i) {
    start = start * shape[i] + (shape[i] == 1 ? 0 : index[4 - shape.rank() + i]);
  }
  const bool shared = shape.rank() == 0 || shape[-1] == 1;
  if (mask.dtype() == Dtype::boolean) {
    const bool* keep = mask.as<bool>() + start;
    for (size_t i = 0; i < count; ++i) {
      if (!keep[shared ? 0 : i]) {
        // As MLX: a row that is masked everywhere gives the mean, not NaN.
        s[i * step] = std::numeric_limits<float>::lowest();
      }
    }
    return;
  }
  HWY_ALIGN float add[Attention::tile + hn::MaxLanes(F32())];
  const T* values = mask.as<T>() + start;
  for (size_t i = 0; i < count; i += lanes()) {
    store(
        shared ? hn::Set(F32(), hn::GetLane(load_n(values, 1))) : load_some(values + i, count - i),
        add + i);
  }
  for (size_t i = 0; i < count; ++i) {
    s[i * step] += add[i];
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Adds up the blocks of four lanes.
template <typename D>
HWY_INLINE void fold_store(D d, hn::Vec<D> v, float* to) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    hn::StoreU(v, d, to);
  } else {
    const hn::Half<D> half;
    fold_store(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), to);
  }
}
#endif

/// to[i] = the sum over the lanes of v[i], for four vectors.
HWY_INLINE void store_sums(const Floats* v, float* to) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) {
    to[i] = hn::GetLane(v[i]);
  }
#else
  const F32 d;
  const hn::Repartition<uint64_t, F32> du;
  auto ab = hn::Add(hn::InterleaveLower(d, v[0], v[1]), hn::InterleaveUpper(d, v[0], v[1]));
  auto cd = hn::Add(hn::InterleaveLower(d, v[2], v[3]), hn::InterleaveUpper(d, v[2], v[3]));
  auto low = hn::InterleaveLower(du, hn::BitCast(du, ab), hn::BitCast(du, cd));
  auto high = hn::InterleaveUpper(du, hn::BitCast(du, ab), hn::BitCast(du, cd));
  fold_store(d, hn::Add(hn::BitCast(d, low), hn::BitCast(d, high)), to);
#endif
}

/// s[r * tile + i] = q row r . key i, for R rows and 4 keys; q rows are padded with zeros.
template <typename T, int R>
HWY_INLINE void
dot_rows(const float* q, size_t q_step, const T* const* keys, size_t width, float* s) {
  Floats sums[R][4];
  for (auto& row : sums) {
    for (auto& x : row) {
      x = hn::Zero(F32());
    }
  }
  size_t d = 0;
  for (; d + lanes() <= width; d += lanes()) {
    const Floats k0 = load(keys[0] + d);
    const Floats k1 = load(keys[1] + d);
    const Floats k2 = load(keys[2] + d);
    const Floats k3 = load(keys[3] + d);
    for (int r = 0; r < R; ++r) {
      const Floats x = load(q + static_cast<size_t>(r) * q_step + d);
      sums[r][0] = hn::MulAdd(x, k0, sums[r][0]);
      sums[r][1] = hn::MulAdd(x, k1, sums[r][1]);
      sums[r][2] = hn::MulAdd(x, k2, sums[r][2]);
      sums[r][3] = hn::MulAdd(x, k3, sums[r][3]);
    }
  }
  if (d < width) {
    for (int i = 0; i < 4; ++i) {
      const Floats k = load_n(keys[i] + d, width - d);
      for (int r = 0; r < R; ++r) {
        const Floats x = load(q + static_cast<size_t>(r) * q_step + d);
        sums[r][i] = hn::MulAdd(x, k, sums[r][i]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    store_sums(sums[r], s + r * Attention::tile);
  }
}

/// o row r = keep[r] * o row r + sum over keys of p[r * tile + key] * values row, for R rows and V
/// vectors (or the last `left` columns).
template <typename T, int R, int V>
HWY_INLINE void weigh_rows(
    const float* p,
    const T* values,
    size_t value_step,
    size_t keys,
    const float* keep,
    float* o,
    size_t o_step,
    size_t left) {
  const F32 d;
  const size_t step = lanes();
  Floats sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      const float* from = o + static_cast<size_t>(r) * o_step + static_cast<size_t>(v) * step;
      sums[r][v] = hn::Mul(load(from), hn::Set(d, keep[r]));
    }
  }
  for (size_t key = 0; key < keys; ++key) {
    Floats x[V];
    for (int v = 0; v < V; ++v) {
      const T* from = values + key * value_step + static_cast<size_t>(v) * step;
      x[v] = V == 1 ? load_some(from, left) : load(from);
    }
    for (int r = 0; r < R; ++r) {
      const Floats weight = hn::Set(d, p[static_cast<size_t>(r * Attention::tile) + key]);
      for (int v = 0; v < V; ++v) {
        sums[r][v] = hn::MulAdd(weight, x[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      store(sums[r][v], o + static_cast<size_t>(r) * o_step + static_cast<size_t>(v) * step);
    }
  }
}

/// Result of a piece: rows of sums over values, each with its largest score and its sum of weights.
struct Parts {
  float* o;
  size_t row_step; // from one row of o to the next
  size_t column_step; // from one column to the next
  float* largest;
  float* total;
};

/// What a sum of weights is divided by: a padded row that sees no key at all gives zeros.
HWY_INLINE Floats divisor(const Attention& op, float total) {
  return hn::Set(F32(), op.padded && total == 0 ? 1.0f : total);
}

/// Writes the rows of a piece: as the final result, or for merge_rows() when there is more.
template <typename T>
void write_rows(
    const Attention& op,
    const AttentionInput& in,
    const Piece& at,
    const Parts& parts,
    float* to) {
  HWY_ALIGN float row[Attention::max_width + hn::MaxLanes(F32())];
  const size_t n = static_cast<size_t>(op.value_width);
  for (int64_t r = 0; r < at.rows; ++r) {
    const float* from = parts.o + static_cast<size_t>(r) * parts.row_step;
    for (size_t i = 0; i < n; ++i) {
      row[i] = from[i * parts.column_step];
    }
    if (to) {
      std::copy(row, row + n, to + static_cast<size_t>(r) * n);
      to[op.block_rows() * op.value_width + r] = parts.largest[r];
      to[op.block_rows() * (op.value_width + 1) + r] = parts.total[r];
      continue;
    }
    T* out = in.out.as<T>() + row_start(op, at, at.first_row + r, op.value_width);
    const auto total = divisor(op, parts.total[r]);
    for (size_t i = 0; i < n; i += lanes()) {
      store_some(hn::Div(load(row + i), total), out + i, n - i);
    }
  }
}

/// A maximum that may be subtracted: rows that have seen no key yet stay at zero weight.
HWY_INLINE Floats finite_max(Floats m) {
  const F32 d;
  return hn::IfThenElse(hn::Eq(m, hn::Set(d, -infinity)), hn::Zero(d), m);
}

/// Asks for rows [first, first + 4) of `width` elements, as far as they lie before `end`.
template <typename T>
HWY_INLINE void fetch_rows(const T* rows, int64_t first, int64_t end, int64_t width) {
  const int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  const T* stop = rows + std::min(first + 4, end) * width;
  for (const T* p = rows + std::min(first, end) * width; p < stop; p += line) {
    hwy::Prefetch(p);
  }
}

/// A piece of at most few_rows rows: keys stream by once, each used by all rows.
template <typename T>
void attend_few(const Attention& op, const AttentionInput& in, const Piece& at, float* to) {
  const F32 d;
  const size_t step = lanes();
  const size_t rows = static_cast<size_t>(at.rows);
  const size_t width = static_cast<size_t>(op.width);
  const size_t value_width = static_cast<size_t>(op.value_width);
  constexpr size_t room = Attention::max_width + hn::MaxLanes(F32());
  constexpr size_t tile = Attention::tile;
  HWY_ALIGN float q[Attention::few_rows * room];
  HWY_ALIGN float o[Attention::few_rows * room];
  HWY_ALIGN float s[Attention::few_rows * tile];
  float largest[Attention::few_rows];
  float total[Attention::few_rows];
  float keep[Attention::few_rows];

  for (size_t r = 0; r < rows; ++r) {
    const T* from =
        in.q.as<T>() + row_start(op, at, at.first_row + static_cast<int64_t>(r), op.width);
    for (size_t i = 0; i < width; i += step) {
      auto x = hn::Mul(load_some(from + i, width - i), hn::Set(d, op.scale));
      store(x, q + r * room + i);
    }
    std::fill(o + r * room, o + (r + 1) * room, 0.0f);
    largest[r] = -infinity;
    total[r] = 0;
  }

  const int64_t head = at.batch * op.kv_heads + at.kv_head;
  const int64_t capacity = in.keys.shape()[2];
  const T* keys = in.keys.as<T>() + head * capacity * op.width;
  const T* values = in.values.as<T>() + head * capacity * op.value_width;
  for (int64_t begin = at.begin; begin < at.end; begin += Attention::tile) {
    const size_t count = static_cast<size_t>(std::min(at.end - begin, Attention::tile));
    for (size_t i = 0; i < count; i += 4) {
      const T* four[4];
      for (size_t j = 0; j < 4; ++j) {
        // Past the end the last key stands in: nothing beyond it is read.
        four[j] = keys + (begin + static_cast<int64_t>(std::min(i + j, count - 1))) * op.width;
      }
      // Two streams that take turns confuse the hardware's own prefetching.
      fetch_rows(values, begin + static_cast<int64_t>(i), at.end, op.value_width);
      fetch_rows(keys, begin + static_cast<int64_t>(i) + Attention::tile, at.end, op.width);
      size_t r = 0;
      for (; r + 4 <= rows; r += 4) {
        dot_rows<T, 4>(q + r * room, room, four, width, s + r * tile + i);
      }
      switch (rows - r) {
        case 3:
          dot_rows<T, 3>(q + r * room, room, four, width, s + r * tile + i);
          break;
        case 2:
          dot_rows<T, 2>(q + r * room, room, four, width, s + r * tile + i);
          break;
        case 1:
          dot_rows<T, 1>(q + r * room, room, four, width, s + r * tile + i);
          break;
        default:
          break;
      }
    }
    for (size_t r = 0; r < rows; ++r) {
      float* row = s + r * tile;
      const int64_t number = at.first_row + static_cast<int64_t>(r);
      if (op.mask == cpu::MaskKind::array) {
        mask_row<T>(op, *in.mask, at, number, begin, count, row, 1);
      } else if (op.mask == cpu::MaskKind::causal) {
        const int64_t last = in.offset + number / op.group() - begin;
        for (int64_t i = std::max<int64_t>(0, last + 1); i < static_cast<int64_t>(count); ++i) {
          row[i] = -infinity;
        }
        if (op.window) {
          const int64_t first = std::min(last - op.window + 1, static_cast<int64_t>(count));
          for (int64_t i = 0; i < first; ++i) {
            row[i] = -infinity;
          }
        }
      }
      std::fill(row + count, row + tile, -infinity);
      Floats high = hn::Set(d, largest[r]);
      for (size_t i = 0; i < tile; i += step) {
        high = hn::Max(high, load(row + i));
      }
      high = hn::MaxOfLanes(d, high);
      const Floats base = finite_max(high);
      keep[r] = hn::GetLane(exp(hn::Sub(hn::Set(d, largest[r]), base)));
      Floats sums = hn::Zero(d);
      for (size_t i = 0; i < tile; i += step) {
        auto p = exp(hn::Sub(load(row + i), base));
        sums = hn::Add(sums, p);
        store(p, row + i);
      }
      largest[r] = hn::GetLane(high);
      total[r] = total[r] * keep[r] + sum(sums);
    }

    const T* tile_values = values + begin * op.value_width;
    constexpr int V = registers == 32 ? 4 : 2;
    auto weigh = [&](auto vectors, size_t column, size_t left) HWY_ATTR {
      constexpr int n = decltype(vectors)::value;
      size_t r = 0;
      for (; r + 4 <= rows; r += 4) {
        weigh_rows<T, 4, n>(
            s + r * tile,
            tile_values + column,
            value_width,
            count,
            keep + r,
            o + r * room + column,
            room,
            left);
      }
      switch (rows - r) {
        case 3:
          weigh_rows<T, 3, n>(
              s + r * tile,
              tile_values + column,
              value_width,
              count,
              keep + r,
              o + r * room + column,
              room,
              left);
          break;
        case 2:
          weigh_rows<T, 2, n>(
              s + r * tile,
              tile_values + column,
              value_width,
              count,
              keep + r,
              o + r * room + column,
              room,
              left);
          break;
        case 1:
          weigh_rows<T, 1, n>(
              s + r * tile,
              tile_values + column,
              value_width,
              count,
              keep + r,
              o + r * room + column,
              room,
              left);
          break;
        default:
          break;
      }
    };
    size_t column = 0;
    for (; column + V * step <= value_width; column += V * step) {
      weigh(std::integral_constant<int, V>(), column, V * step);
    }
    for (; column < value_width; column += step) {
      weigh(std::integral_constant<int, 1>(), column, value_width - column);
    }
  }
  write_rows<T>(op, in, at, {o, room, 1, largest, total}, to);
}

/// c[i * c_step + rows] = keep * c + sum over x < n of a[i * a_row + x * a_step] * b[x * b_step +
/// rows], for K values of i and V vectors of rows. No `keep`: c starts at zero.
template <int K, int V>
HWY_INLINE void multiply_block(
    const float* a,
    size_t a_row,
    size_t a_step,
    const float* b,
    size_t b_step,
    size_t n,
    const float* keep,
    float* c,
    size_t c_step) {
  const F32 d;
  const size_t step = lanes();
  Floats sums[K][V];
  for (size_t i = 0; i < K; ++i) {
    for (size_t v = 0; v < V; ++v) {
      sums[i][v] =
          keep ? hn::Mul(load(c + i * c_step + v * step), load(keep + v * step)) : hn::Zero(d);
    }
  }
  for (size_t x = 0; x < n; ++x) {
    Floats rows[V];
    for (size_t v = 0; v < V; ++v) {
      rows[v] = hn::Load(d, b + x * b_step + v * step);
    }
    for (size_t i = 0; i < K; ++i) {
      const Floats one = hn::Set(d, a[i * a_row + x * a_step]);
      for (size_t v = 0; v < V; ++v) {
        sums[i][v] = hn::MulAdd(one, rows[v], sums[i][v]);
      }
    }
  }
  for (size_t i = 0; i < K; ++i) {
    for (size_t v = 0; v < V; ++v) {
      store(sums[i][v], c + i * c_step + v * step);
    }
  }
}

/// multiply_block for `count` values of i and all row vectors.
template <int V>
void multiply_columns(
    const float* a,
    size_t a_row,
    size_t a_step,
    size_t count,
    const float* b,
    size_t b_step,
    size_t n,
    const float* keep,
    float* c,
    size_t c_step) {
  constexpr int K = V >= 3 || (V == 2 && registers == 16) ? 4 : 8;
  size_t i = 0;
  for (; i + K <= count; i += K) {
    multiply_block<K, V>(a + i * a_row, a_row, a_step, b, b_step, n, keep, c + i * c_step, c_step);
  }
  for (; i < count; ++i) {
    multiply_block<1, V>(a + i * a_row, a_row, a_step, b, b_step, n, keep, c + i * c_step, c_step);
  }
}

HWY_INLINE void multiply(
    const float* a,
    size_t a_row,
    size_t a_step,
    size_t count,
    const float* b,
    size_t row_vectors,
    size_t n,
    const float* keep,
    float* c) {
  const size_t rows = row_vectors * lanes();
  constexpr size_t most = registers == 32 ? 4 : 2;
  for (size_t v = 0; v < row_vectors; v += most) {
    const size_t at = v * lanes();
    const float* kept = keep ? keep + at : nullptr;
    switch (std::min(most, row_vectors - v)) {
      case 4:
        multiply_columns<4>(a, a_row, a_step, count, b + at, rows, n, kept, c + at, rows);
        break;
      case 3:
        multiply_columns<3>(a, a_row, a_step, count, b + at, rows, n, kept, c + at, rows);
        break;
      case 2:
        multiply_columns<2>(a, a_row, a_step, count, b + at, rows, n, kept, c + at, rows);
        break;
      default:
        multiply_columns<1>(a, a_row, a_step, count, b + at, rows, n, kept, c + at, rows);
        break;
    }
  }
}

/// A piece of many rows: rows lie in the vector lanes, so that softmax needs no sum across lanes.
template <typename T>
void attend_many(const Attention& op, const AttentionInput& in, const Piece& at, float* to) {
  const F32 d;
  const size_t step = lanes();
  const size_t count_rows = static_cast<size_t>(at.rows);
  const size_t row_vectors = (count_rows + step - 1) / step;
  const size_t rows = row_vectors * step;
  const size_t width = static_cast<size_t>(op.width);
  const size_t value_width = static_cast<size_t>(op.value_width);
  constexpr size_t area = Attention::max_rows * Attention::max_width;
  constexpr size_t tile = Attention::tile;
  HWY_ALIGN float q[area]; // [width][rows]
  HWY_ALIGN float o[area]; // [value_width][rows]
  HWY_ALIGN float s[tile * Attention::max_rows]; // [key][rows]
  HWY_ALIGN float cells[tile * Attention::max_width + hn::MaxLanes(F32())]; // keys, then values
  HWY_ALIGN float last_key[Attention::max_rows];
  HWY_ALIGN float largest[Attention::max_rows];
  HWY_ALIGN float total[Attention::max_rows];
  HWY_ALIGN float keep[Attention::max_rows];

  HWY_ALIGN float row[Attention::max_width + hn::MaxLanes(F32())];
  for (size_t r = 0; r < rows; ++r) {
    if (r < count_rows) {
      const int64_t number = at.first_row + static_cast<int64_t>(r);
      const T* from = in.q.as<T>() + row_start(op, at, number, op.width);
      for (size_t i = 0; i < width; i += step) {
        store(hn::Mul(load_some(from + i, width - i), hn::Set(d, op.scale)), row + i);
      }
    } else {
      std::fill(row, row + width, 0.0f);
    }
    for (size_t i = 0; i < width; ++i) {
      q[i * rows + r] = row[i];
    }
    largest[r] = -infinity;
    total[r] = 0;
  }
  std::fill(o, o + value_width * rows, 0.0f);

  auto unpack = [&](const T* from, size_t n) HWY_ATTR {
    for (size_t i = 0; i < n; i += step) {
      store(load_some(from + i, n - i), cells + i);
    }
  };
  const int64_t head = at.batch * op.kv_heads + at.kv_head;
  const int64_t capacity = in.keys.shape()[2];
  const T* keys = in.keys.as<T>() + head * capacity * op.width;
  const T* values = in.values.as<T>() + head * capacity * op.value_width;
  const int64_t first_token = in.offset + at.first_row / op.group();
  const int64_t last_token = in.offset + (at.first_row + at.rows - 1) / op.group();
  for (int64_t begin = at.begin; begin < at.end; begin += Attention::tile) {
    const size_t count = static_cast<size_t>(std::min(at.end - begin, Attention::tile));
    const int64_t end = begin + static_cast<int64_t>(count);
    unpack(keys + begin * op.width, count * width);
    multiply(cells, width, 1, count, q, row_vectors, width, nullptr, s);

    if (op.mask == cpu::MaskKind::array) {
      for (size_t r = 0; r < count_rows; ++r) {
        const int64_t number = at.first_row + static_cast<int64_t>(r);
        mask_row<T>(op, *in.mask, at, number, begin, count, s + r, rows);
      }
    } else if (
        op.mask == cpu::MaskKind::causal &&
        (end - 1 > first_token || (op.window && begin <= last_token - op.window))) {
      for (size_t r = 0; r < rows; ++r) {
        const int64_t number = at.first_row + static_cast<int64_t>(std::min(r, count_rows - 1));
        last_key[r] = static_cast<float>(in.offset + number / op.group() - begin);
      }
      const auto window = hn::Set(d, op.window ? static_cast<float>(op.window) : infinity);
      for (size_t v = 0; v < rows; v += step) {
        const Floats last = load(last_key + v);
        const Floats before = hn::Sub(last, window);
        for (size_t i = 0; i < count; ++i) {
          const Floats key = hn::Set(d, static_cast<float>(i));
          const auto hidden = hn::Or(hn::Gt(key, last), hn::Le(key, before));
          float* x = s + i * rows + v;
          store(hn::IfThenElse(hidden, hn::Set(d, -infinity), load(x)), x);
        }
      }
    }

    for (size_t v = 0; v < rows; v += step) {
      const Floats old = load(largest + v);
      Floats high = old;
      for (size_t i = 0; i < count; ++i) {
        high = hn::Max(high, load(s + i * rows + v));
      }
      const Floats base = finite_max(high);
      const Floats kept = exp(hn::Sub(old, base));
      Floats sums = hn::Zero(d);
      for (size_t i = 0; i < count; ++i) {
        float* x = s + i * rows + v;
        const Floats p = exp(hn::Sub(load(x), base));
        sums = hn::Add(sums, p);
        store(p, x);
      }
      store(high, largest + v);
      store(kept, keep + v);
      store(hn::MulAdd(load(total + v), kept, sums), total + v);
    }

    unpack(values + begin * op.value_width, count * value_width);
    multiply(cells, 1, value_width, value_width, s, row_vectors, count, keep, o);
  }
  write_rows<T>(op, in, at, {o, 1, rows, largest, total}, to);
}

/// Brings together the chunks of a row, whose first part is at `parts`.
template <typename T>
void merge_row(const Attention& op, int64_t chunks, const float* parts, int64_t r, T* out) {
  const F32 d;
  const size_t n = static_cast<size_t>(op.value_width);
  const int64_t one = op.part_floats();
  const float* largest = parts + op.block_rows() * op.value_width + r;
  const float* total = largest + op.block_rows();
  HWY_ALIGN float weight[Attention::wanted_pieces + hn::MaxLanes(F32())];
  float high = -infinity;
  for (int64_t c = 0; c < chunks; ++c) {
    weight[c] = largest[c * one];
    high = std::max(high, weight[c]);
  }
  const Floats base = finite_max(hn::Set(d, high));
  for (size_t c = 0; c < static_cast<size_t>(chunks); c += lanes()) {
    store(exp(hn::Sub(load(weight + c), base)), weight + c);
  }
  float all = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    all += weight[c] * total[c * one];
  }
  for (size_t i = 0; i < n; i += lanes()) {
    Floats sums = hn::Zero(d);
    for (int64_t c = 0; c < chunks; ++c) {
      auto x = load_some(parts + c * one + r * op.value_width + static_cast<int64_t>(i), n - i);
      sums = hn::MulAdd(hn::Set(d, weight[c]), x, sums);
    }
    store_some(hn::Div(sums, divisor(op, all)), out + i, n - i);
  }
}

template <typename T>
void attend(const Attention& op, const AttentionInput& in, Member& member) {
  const int64_t heads = op.batch * op.kv_heads;
  auto block = [&](int64_t item) {
    // Later blocks see more keys: they go first.
    Piece at{};
    at.first_row = (op.blocks() - 1 - item / heads) * Attention::max_rows;
    at.rows = std::min(op.rows() - at.first_row, Attention::max_rows);
    at.batch = item % heads / op.kv_heads;
    at.kv_head = item % op.kv_heads;
    return at;
  };
  int64_t chunks = 1;
  // Only padded sequences differ in the keys that they see.
  const int64_t step = op.padded ? op.kv_heads : heads;
  for (int64_t item = 0; op.splits() > 1 && item < op.items(); item += step) {
    chunks = std::max(chunks, chunk_count(op, seen(op, in, block(item))));
  }
  member.dynamic(op.items() * chunks, 1, [&](Range work) {
    for (int64_t i = work.begin; i < work.end; ++i) {
      Piece at = block(i / chunks);
      const int64_t chunk = i % chunks;
      const Range keys = seen(op, in, at);
      const int64_t count = chunk_count(op, keys);
      if (chunk >= count) {
        continue;
      }
      const int64_t each = count == 1 ? keys.end - keys.begin : chunk_keys(op, keys);
      at.begin = keys.begin + chunk * each;
      at.end = std::min(keys.end, at.begin + each);
      float* to = count == 1 ? nullptr
                             : in.scratch + ((i / chunks) * op.splits() + chunk) * op.part_floats();
      if (op.rows() <= Attention::few_rows) {
        attend_few<T>(op, in, at, to);
      } else {
        attend_many<T>(op, in, at, to);
      }
    }
  });
  if (chunks == 1) {
    return;
  }
  const Range mine = member.split(op.items() * op.block_rows());
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t item = i / op.block_rows();
    const int64_t r = i % op.block_rows();
    const Piece at = block(item);
    const int64_t count = chunk_count(op, seen(op, in, at));
    if (r < at.rows && count > 1) {
      T* out = in.out.as<T>() + row_start(op, at, at.first_row + r, op.value_width);
      merge_row<T>(op, count, in.scratch + item * op.splits() * op.part_floats(), r, out);
    }
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
