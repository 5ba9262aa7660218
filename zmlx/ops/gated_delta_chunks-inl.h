// zmlx/ops/gated_delta_chunks-inl.h: the gated delta rule for a vector's worth of tokens at a
// time. Included once for each instruction set.
//
// Within a chunk that starts from the state S, let d(t, j) be the product of the gates after token
// j up to t, and d(t) that of all up to t. A token changes the state by u(t) k(t)^T with
//   u(t) = beta(t) (v(t) - d(t) S k(t) - sum over j < t of d(t, j) (k(j) . k(t)) u(j)):
// a triangular system of the chunk's tokens that all rows of the state share, (I + A) u = b. Its
// inverse T (the UT transform of the WY representation) is computed once, and the state is read and
// written once a chunk, by products of matrices (Yang et al., 2024, "Parallelizing Linear
// Transformers with the Delta Rule over Sequence Length"; with gates, "Gated Delta Networks").
#include <algorithm>

#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/gated_delta.h"
#include "zmlx/ops/op.h"

#if defined(ZMLX_OPS_GATED_DELTA_CHUNKS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_OPS_GATED_DELTA_CHUNKS_INL_H_
#undef ZMLX_OPS_GATED_DELTA_CHUNKS_INL_H_
#else
#define ZMLX_OPS_GATED_DELTA_CHUNKS_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

HWY_INLINE float number_at(const Tensor& x, int64_t i) {
  switch (x.dtype()) {
    case Dtype::f16:
      return hn::GetLane(load_n(x.as<hwy::float16_t>() + i, 1));
    case Dtype::bf16:
      return hn::GetLane(load_n(x.as<hwy::bfloat16_t>() + i, 1));
    default:
      return x.as<float>()[i];
  }
}

/// What the rows of a head's state share about a chunk. Tokens that are masked, or past the end,
/// leave the state as it is: gate 1, a key of zeros, and no change.
struct DeltaChunk {
  static constexpr int64_t tokens = static_cast<int64_t>(hn::MaxLanes(F32()));
  static constexpr int64_t max_key = GatedDelta::max_key;

  int64_t first; // number of its first token, in the batch
  int64_t count;
  HWY_ALIGN float keys[tokens * max_key]; // [token][element]
  HWY_ALIGN float keys_across[max_key * tokens]; // [element][token]
  HWY_ALIGN float queries_across[max_key * tokens];
  HWY_ALIGN float since[tokens * tokens]; // [j][t]: d(t, j) for t >= j
  HWY_ALIGN float from_start[tokens]; // d(t)
  HWY_ALIGN float beta[tokens];
  HWY_ALIGN float counts[tokens]; // 1 or 0
  HWY_ALIGN float inverse[tokens * tokens]; // [j][t]: T
  HWY_ALIGN float answers[tokens * tokens]; // [j][t]: d(t, j) k(j) . q(t)
  HWY_ALIGN float until_end[tokens]; // d(last, j)
};

/// `n` elements from x to [element][token] at `across`, and to `along` if there is one.
template <typename T>
void spread_token(const T* x, int64_t n, int64_t t, float* along, float* across) {
  HWY_ALIGN float part[hn::MaxLanes(F32())];
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const int64_t count = std::min(n - i, static_cast<int64_t>(lanes()));
    const Floats v = load_some(x + i, static_cast<size_t>(n - i));
    store(v, part);
    if (along) {
      store_some(v, along + i, static_cast<size_t>(n - i));
    }
    for (int64_t j = 0; j < count; ++j) {
      across[(i + j) * DeltaChunk::tokens + t] = part[j];
    }
  }
}

/// Products of key j with all keys and all queries.
HWY_INLINE void
products_of(const DeltaChunk& c, int64_t n, int64_t j, Floats& keys, Floats& queries) {
  keys = hn::Zero(F32());
  queries = keys;
  const float* key = c.keys + j * DeltaChunk::max_key;
  for (int64_t i = 0; i < n; ++i) {
    const Floats k = hn::Set(F32(), key[i]);
    keys = hn::MulAdd(k, load(c.keys_across + i * DeltaChunk::tokens), keys);
    queries = hn::MulAdd(k, load(c.queries_across + i * DeltaChunk::tokens), queries);
  }
}

/// Tokens [first, first + count) of a head.
template <typename T>
void read_chunk(
    const GatedDelta& op,
    const Call& call,
    int64_t first,
    int64_t count,
    int64_t head,
    DeltaChunk& c) {
  constexpr int64_t size = DeltaChunk::tokens;
  const int64_t n = op.key;
  float gates[size];
  c.first = first;
  c.count = count;
  for (int64_t t = 0; t < size; ++t) {
    const int64_t token = first + t;
    const bool counts = t < count && (!op.masked || call.in[6].as<bool>()[token]);
    c.counts[t] = counts ? 1 : 0;
    gates[t] = counts ? number_at(call.in[3], token * op.v_heads + head) : 1;
    c.beta[t] = counts ? number_at(call.in[4], token * op.v_heads + head) : 0;
    if (counts) {
      const int64_t at = (token * op.k_heads + head / (op.v_heads / op.k_heads)) * n;
      spread_token(call.in[1].as<T>() + at, n, t, c.keys + t * DeltaChunk::max_key, c.keys_across);
      spread_token(call.in[0].as<T>() + at, n, t, nullptr, c.queries_across);
    } else {
      std::fill_n(c.keys + t * DeltaChunk::max_key, n, 0.0f);
      for (int64_t i = 0; i < n; ++i) {
        c.keys_across[i * size + t] = 0;
        c.queries_across[i * size + t] = 0;
      }
    }
  }
  float all = 1;
  for (int64_t t = 0; t < size; ++t) {
    all *= gates[t];
    c.from_start[t] = all;
  }
  // A: below the diagonal, by rows.
  HWY_ALIGN float row[size * size];
  HWY_ALIGN float part[size];
  for (int64_t j = 0; j < size; ++j) {
    float product = 1;
    for (int64_t t = 0; t < size; ++t) {
      product *= t > j ? gates[t] : 1;
      c.since[j * size + t] = t < j ? 0 : product;
    }
    c.until_end[j] = product;
    Floats keys;
    Floats queries;
    products_of(c, n, j, keys, queries);
    const Floats since = load(c.since + j * size);
    store(hn::Mul(since, queries), c.answers + j * size);
    store(hn::Mul(hn::Mul(since, keys), load(c.beta)), part);
    for (int64_t t = 0; t < size; ++t) {
      row[t * size + j] = part[t];
    }
  }
  // T by forward substitution: row t is e(t) less A's row t times the rows above.
  HWY_ALIGN float inverse[size * size];
  for (int64_t t = 0; t < size; ++t) {
    Floats sums = hn::Zero(F32());
    for (int64_t j = 0; j < t; ++j) {
      sums = hn::NegMulAdd(hn::Set(F32(), row[t * size + j]), load(inverse + j * size), sums);
    }
    store(sums, inverse + t * size);
    inverse[t * size + t] = 1;
    for (int64_t j = 0; j < size; ++j) {
      c.inverse[j * size + t] = inverse[t * size + j];
    }
  }
}

/// sum over j of matrix[j] x[j], in the lanes from j on alone: NaN of a later token stays with it.
HWY_INLINE Floats lower_product(const float* matrix, const float* x, Floats sums) {
  constexpr int64_t size = DeltaChunk::tokens;
  for (int64_t j = 0; j < size; ++j) {
    const auto before = hn::FirstN(F32(), static_cast<size_t>(j));
    const Floats next = hn::MulAdd(load(matrix + j * size), hn::Set(F32(), x[j]), sums);
    sums = hn::IfThenElse(before, sums, next);
  }
  return sums;
}

/// `rows` rows of a head's state from `row` on, over a chunk: `from` to `to`, and answers to y.
template <int rows, typename T>
void delta_chunk_rows(
    const GatedDelta& op,
    const Call& call,
    const DeltaChunk& c,
    int64_t head,
    int64_t row,
    const float* from,
    float* to) {
  constexpr int64_t size = DeltaChunk::tokens;
  const F32 d;
  const int64_t n = op.key;
  Floats known[rows];
  Floats answer[rows];
  for (int r = 0; r < rows; ++r) {
    known[r] = hn::Zero(d);
    answer[r] = known[r];
  }
  for (int64_t i = 0; i < n; ++i) {
    const Floats keys = load(c.keys_across + i * size);
    const Floats queries = load(c.queries_across + i * size);
    for (int r = 0; r < rows; ++r) {
      const Floats s = hn::Set(d, from[r * n + i]);
      known[r] = hn::MulAdd(s, keys, known[r]);
      answer[r] = hn::MulAdd(s, queries, answer[r]);
    }
  }
  HWY_ALIGN float part[rows + hn::MaxLanes(F32())];
  HWY_ALIGN float values[rows * size]; // [row][token], then answers
  HWY_ALIGN float change[rows * size]; // d(last, t) u(t)
  auto place = [&](int64_t t) { return ((c.first + t) * op.v_heads + head) * op.value + row; };
  for (int64_t t = 0; t < size; ++t) {
    for (int r = 0; r < rows; r += static_cast<int>(lanes())) {
      const auto left = static_cast<size_t>(rows - r);
      store(
          t < c.count ? load_some(call.in[2].as<T>() + place(t) + r, left) : hn::Zero(d), part + r);
    }
    for (int r = 0; r < rows; ++r) {
      values[r * size + t] = part[r];
    }
  }
  const Floats from_start = load(c.from_start);
  const auto counts = hn::Ne(load(c.counts), hn::Zero(d));
  for (int r = 0; r < rows; ++r) {
    HWY_ALIGN float wanted[size];
    Floats b = hn::NegMulAdd(from_start, known[r], load(values + r * size));
    store(hn::IfThenElseZero(counts, hn::Mul(b, load(c.beta))), wanted);
    const Floats u = lower_product(c.inverse, wanted, hn::Zero(d));
    store(u, wanted);
    const Floats y = lower_product(c.answers, wanted, hn::Mul(from_start, answer[r]));
    store(hn::IfThenElseZero(counts, y), values + r * size);
    store(hn::Mul(u, load(c.until_end)), change + r * size);
  }
  for (int64_t t = 0; t < c.count; ++t) {
    for (int r = 0; r < rows; ++r) {
      part[r] = values[r * size + t];
    }
    for (int r = 0; r < rows; r += static_cast<int>(lanes())) {
      const auto left = static_cast<size_t>(rows - r);
      store_some(load_some(part + r, left), call.out[0].as<T>() + place(t) + r, left);
    }
  }
  const Floats kept = hn::Set(d, c.from_start[size - 1]);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const auto left = static_cast<size_t>(n - i);
    Floats s[rows];
    for (int r = 0; r < rows; ++r) {
      s[r] = hn::Mul(kept, load_some(from + r * n + i, left));
    }
    for (int64_t t = 0; t < c.count; ++t) {
      const Floats key = load_some(c.keys + t * DeltaChunk::max_key + i, left);
      for (int r = 0; r < rows; ++r) {
        s[r] = hn::MulAdd(hn::Set(d, change[r * size + t]), key, s[r]);
      }
    }
    for (int r = 0; r < rows; ++r) {
      store_some(s[r], to + r * n + i, left);
    }
  }
}

/// Rows [first, last) of a head's state (`item`: sequence and head) over all tokens, of which there
/// is at least one. The gate is one number a token.
template <typename T>
void delta_chunks(
    const GatedDelta& op,
    const Call& call,
    int64_t item,
    int64_t first,
    int64_t last) {
  constexpr int rows = registers == 32 ? 8 : 4;
  const int64_t b = item / op.v_heads;
  const int64_t head = item % op.v_heads;
  const float* from = call.in[5].as<float>() + item * op.value * op.key;
  float* to = call.out[1].as<float>() + item * op.value * op.key;
  DeltaChunk chunk;
  for (int64_t t = 0; t < op.tokens; t += DeltaChunk::tokens) {
    const int64_t count = std::min(DeltaChunk::tokens, op.tokens - t);
    read_chunk<T>(op, call, b * op.tokens + t, count, head, chunk);
    int64_t r = first;
    for (; r + rows <= last; r += rows) {
      delta_chunk_rows<rows, T>(op, call, chunk, head, r, from + r * op.key, to + r * op.key);
    }
    for (; r < last; ++r) {
      delta_chunk_rows<1, T>(op, call, chunk, head, r, from + r * op.key, to + r * op.key);
    }
    from = to;
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
