// zmlx/ops/paged_attention.cpp: attention of one token a sequence over a KV cache in blocks.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/paged_attention.cpp"
#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"
#include "zmlx/runtime/error.h"

#ifndef ZMLX_OPS_PAGED_ATTENTION_CPP_
#define ZMLX_OPS_PAGED_ATTENTION_CPP_
namespace zmlx {
namespace {

/// Sizes of one call. A piece of work is a sequence's KV head against a chunk of its keys; how keys
/// are cut depends on their number alone.
struct Paged {
  static constexpr int64_t max_width = 256; // widest head
  static constexpr int64_t max_group = 32; // query heads of a KV head
  static constexpr int64_t tile = 64; // keys between two updates of the running maximum
  static constexpr int64_t ahead = 8; // keys between a fetch and its use
  static constexpr int64_t min_chunk = 2 * tile;
  static constexpr int64_t wanted_pieces = 64;

  float scale;
  int64_t batch;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t width;
  int64_t value_width;
  int64_t blocks;
  int64_t block_size;
  int64_t table_blocks; // of a sequence

  int64_t group() const {
    return q_heads / kv_heads;
  }
  int64_t items() const {
    return batch * kv_heads;
  }
  /// The most chunks that a sequence's keys are cut into.
  int64_t splits() const {
    return std::max<int64_t>(1, wanted_pieces / std::max<int64_t>(1, items()));
  }
  int64_t chunk_keys(int64_t length) const {
    const int64_t each = (length + splits() - 1) / splits();
    return std::max((each + tile - 1) / tile * tile, min_chunk);
  }
  int64_t chunk_count(int64_t length) const {
    return std::max<int64_t>(1, (length + chunk_keys(length) - 1) / chunk_keys(length));
  }
  /// Floats of one piece's result: sums, then each row's maximum, then its total.
  int64_t part_floats() const {
    return group() * (value_width + 2);
  }
};

/// Rows of one sequence's keys, in the blocks that its row of the table names.
struct Pages {
  const Paged& op;
  const int32_t* table;

  int64_t row(int64_t key, int64_t head) const {
    const int64_t block = table[key / op.block_size];
    if (block < 0 || block >= op.blocks) {
      fail(
          "paged_attention",
          "blocks must be from 0 to below ",
          op.blocks,
          " but one is ",
          block,
          ".");
    }
    return (block * op.block_size + key % op.block_size) * op.kv_heads + head;
  }
};

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Asks for a row of n elements before it is used.
template <typename T>
HWY_INLINE void fetch(const T* row, int64_t n) {
  constexpr auto line = static_cast<int64_t>(64 / sizeof(T));
  for (int64_t i = 0; i < n; i += line) {
    hwy::Prefetch(row + i);
  }
}

/// N rows of queries against one key.
template <int N, typename T>
HWY_INLINE void score(const float* q, const T* key, int64_t width, float* to, int64_t step) {
  Floats sums[N];
  for (auto& one : sums) {
    one = hn::Zero(F32());
  }
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(width - i);
    const Floats k = load_some(key + i, left);
    for (int n = 0; n < N; ++n) {
      sums[n] = hn::MulAdd(k, load_some(q + n * width + i, left), sums[n]);
    }
  }
  for (int n = 0; n < N; ++n) {
    to[n * step] = sum(sums[n]);
  }
}

/// out = out * keep + weights [N, count] times values, for N rows.
template <int N, typename T>
HWY_INLINE void gather_values(
    const float* weights,
    const float* keep,
    const T* const* values,
    int64_t count,
    int64_t width,
    float* out) {
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(width - i);
    Floats sums[N];
    for (int n = 0; n < N; ++n) {
      sums[n] = hn::Mul(load_some(out + n * width + i, left), hn::Set(F32(), keep[n]));
    }
    for (int64_t j = 0; j < count; ++j) {
      const Floats v = load_some(values[j] + i, left);
      for (int n = 0; n < N; ++n) {
        sums[n] = hn::MulAdd(v, hn::Set(F32(), weights[n * Paged::tile + j]), sums[n]);
      }
    }
    for (int n = 0; n < N; ++n) {
      store_some(sums[n], out + n * width + i, left);
    }
  }
}

/// Scores of one row to weights: e^(score - high), and their sum.
HWY_INLINE float weigh(float* scores, int64_t count, float base) {
  const Floats shift = hn::Set(F32(), base);
  float total = 0;
  for (int64_t j = 0; j < count; j += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(count - j);
    const Floats w = exp(hn::Sub(load_some(scores + j, left), shift));
    store_some(w, scores + j, left);
  }
  for (int64_t j = 0; j < count; ++j) {
    total += scores[j];
  }
  return total;
}

/// Keys [keys.begin, keys.end) of one KV head: sums [group, value_width], maxima and totals to
/// `to`.
template <typename T>
void attend_chunk(
    const Paged& op,
    const Call& call,
    int64_t b,
    int64_t head,
    Range keys,
    float* to) {
  constexpr int64_t tile = Paged::tile;
  const int64_t group = op.group();
  const Pages pages{op, call.in[3].as<int32_t>() + b * op.table_blocks};
  HWY_ALIGN float q[Paged::max_group * Paged::max_width];
  HWY_ALIGN float weights[Paged::max_group * tile];
  float keep[Paged::max_group];
  const T* columns[tile]; // keys
  const T* rows[tile]; // values
  const T* queries = call.in[0].as<T>() + (b * op.q_heads + head * group) * op.width;
  for (int64_t i = 0; i < group * op.width; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(group * op.width - i);
    store_some(hn::Mul(load_some(queries + i, left), hn::Set(F32(), op.scale)), q + i, left);
  }
  float* high = to + group * op.value_width;
  float* total = high + group;
  std::fill(to, high, 0.0f);
  std::fill(high, total, -std::numeric_limits<float>::infinity());
  std::fill(total, total + group, 0.0f);

  for (int64_t begin = keys.begin; begin < keys.end; begin += tile) {
    const int64_t count = std::min(tile, keys.end - begin);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t row = pages.row(begin + j, head);
      columns[j] = call.in[1].as<T>() + row * op.width;
      rows[j] = call.in[2].as<T>() + row * op.value_width;
    }
    for (int64_t j = 0; j < count; ++j) {
      // Rows of one head lie too far apart for the machine to foresee.
      fetch(columns[std::min(j + Paged::ahead, count - 1)], op.width);
      fetch(rows[j], op.value_width);
      int64_t r = 0;
      for (; r + 4 <= group; r += 4) {
        score<4>(q + r * op.width, columns[j], op.width, weights + r * tile + j, tile);
      }
      for (; r < group; ++r) {
        score<1>(q + r * op.width, columns[j], op.width, weights + r * tile + j, tile);
      }
    }
    for (int64_t r = 0; r < group; ++r) {
      float* row = weights + r * tile;
      const float largest = std::max(high[r], *std::max_element(row, row + count));
      // Rows without a finite score so far have no base to subtract.
      const float base = std::isinf(largest) ? 0 : largest;
      keep[r] = std::exp(high[r] - base);
      total[r] = total[r] * keep[r] + weigh(row, count, base);
      high[r] = largest;
    }
    int64_t r = 0;
    for (; r + 4 <= group; r += 4) {
      gather_values<4>(
          weights + r * tile, keep + r, rows, count, op.value_width, to + r * op.value_width);
    }
    for (; r < group; ++r) {
      gather_values<1>(
          weights + r * tile, keep + r, rows, count, op.value_width, to + r * op.value_width);
    }
  }
}

/// Row r of the chunks at `parts`, one every `step` floats, brought together.
template <typename T>
void merge(const Paged& op, const float* parts, int64_t step, int64_t chunks, int64_t r, T* out) {
  const int64_t n = op.value_width;
  const float* high = parts + op.group() * n + r;
  const float* total = high + op.group();
  float weight[Paged::wanted_pieces];
  float largest = -std::numeric_limits<float>::infinity();
  for (int64_t c = 0; c < chunks; ++c) {
    largest = std::max(largest, high[c * step]);
  }
  const float base = std::isinf(largest) ? 0 : largest;
  float all = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    weight[c] = std::exp(high[c * step] - base);
    all += weight[c] * total[c * step];
  }
  const Floats divisor = hn::Set(F32(), all);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(n - i);
    Floats sums = hn::Zero(F32());
    for (int64_t c = 0; c < chunks; ++c) {
      const Floats x = load_some(parts + c * step + r * n + i, left);
      sums = hn::MulAdd(hn::Set(F32(), weight[c]), x, sums);
    }
    store_some(hn::Div(sums, divisor), out + i, left);
  }
}

template <typename T>
void paged_attention_of(const Paged& op, const Call& call, Member& member) {
  const int32_t* lengths = call.in[4].as<int32_t>();
  auto* scratch = reinterpret_cast<float*>(call.scratch);
  const int64_t part = op.part_floats();
  member.dynamic(op.items() * op.splits(), 1, [&](Range work) {
    for (int64_t i = work.begin; i < work.end; ++i) {
      const int64_t item = i / op.splits();
      const int64_t b = item / op.kv_heads;
      const int64_t first = i % op.splits() * op.chunk_keys(lengths[b]);
      const Range keys{first, std::min<int64_t>(lengths[b], first + op.chunk_keys(lengths[b]))};
      if (keys.begin < keys.end) {
        attend_chunk<T>(op, call, b, item % op.kv_heads, keys, scratch + i * part);
      }
    }
  });
  const Range mine = member.split(op.batch * op.q_heads);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t item = i / op.group();
    const int64_t length = lengths[item / op.kv_heads];
    T* out = call.out[0].as<T>() + i * op.value_width;
    if (length == 0) {
      std::fill(out, out + op.value_width, T{});
    } else {
      const float* parts = scratch + item * op.splits() * part;
      merge<T>(op, parts, part, op.chunk_count(length), i % op.group(), out);
    }
  }
}

void paged_attention_kernel(const Paged& op, const Call& call, Member& member) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return paged_attention_of<hwy::float16_t>(op, call, member);
    case Dtype::bf16:
      return paged_attention_of<hwy::bfloat16_t>(op, call, member);
    default:
      return paged_attention_of<float>(op, call, member);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <bit>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(paged_attention_kernel);

namespace {

constexpr const char* name = "paged_attention";

/// Needs inputs of the right ranks.
Paged settings(const Types& in, const Attrs& attrs) {
  const Shape& q = in[0].shape;
  const Shape& keys = in[1].shape;
  return {
      static_cast<float>(attrs.real("scale")),
      q[0],
      q[1],
      keys[2],
      q[2],
      in[2].shape[3],
      keys[0],
      keys[1],
      in[3].shape[1]};
}

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 5);
  expect_floating(name, "q", in[0]);
  expect_rank(name, "q", in[0], 3);
  for (auto [label, i] : {std::pair{"k_cache", size_t{1}}, std::pair{"v_cache", size_t{2}}}) {
    expect_rank(name, label, in[i], 4);
    expect_dtype(name, label, in[i], in[0].dtype);
  }
  expect_rank(name, "block_table", in[3], 2);
  expect_dtype(name, "block_table", in[3], Dtype::i32);
  expect_dtype(name, "context_lens", in[4], Dtype::i32);
  const auto op = settings(in, attrs);
  expect_shape(name, "k_cache", in[1], {op.blocks, op.block_size, op.kv_heads, op.width});
  expect_shape(name, "v_cache", in[2], {op.blocks, op.block_size, op.kv_heads, op.value_width});
  expect_shape(name, "block_table", in[3], {op.batch, op.table_blocks});
  expect_shape(name, "context_lens", in[4], {op.batch});
  if (op.kv_heads == 0 || op.q_heads % op.kv_heads != 0) {
    fail(
        name,
        "query heads must be a multiple of KV heads but got ",
        op.q_heads,
        " and ",
        op.kv_heads,
        ".");
  }
  if (op.blocks == 0 || op.block_size == 0) {
    fail(name, "k_cache must have at least one row but got ", to_string(in[1]), ".");
  }
  return {{in[0].dtype, {op.batch, op.q_heads, op.value_width}}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const int batch = in[0].shape(0);
  const int heads = in[1].shape(2);
  const int capacity = in[3].shape(1) * in[1].shape(1);
  auto table = mx::clip(in[3], mx::array(0), mx::array(in[1].shape(0) - 1));
  auto seen = mx::arange(capacity) < mx::expand_dims(in[4], -1); // [B, C]
  auto pages = [&](const mx::array& cache) {
    auto rows = mx::reshape(
        mx::astype(mx::take(cache, table, 0), mx::float32),
        {batch, capacity, heads, cache.shape(3)});
    // What lies past a context may be anything, NaN included.
    rows = mx::where(mx::reshape(seen, {batch, capacity, 1, 1}), rows, mx::array(0.0f));
    return mx::swapaxes(rows, 1, 2);
  };
  auto q = mx::reshape(
      mx::astype(in[0], mx::float32), {batch, heads, in[0].shape(1) / heads, in[0].shape(2)});
  auto scores = mx::matmul(
      q * mx::array(static_cast<float>(attrs.real("scale"))), mx::swapaxes(pages(in[1]), 2, 3));
  auto mask = mx::reshape(seen, {batch, 1, 1, capacity});
  scores = mx::where(mask, scores, mx::array(std::numeric_limits<float>::lowest()));
  auto weights = mx::where(mask, mx::softmax(scores, -1), mx::array(0.0f));
  auto out = mx::matmul(weights, pages(in[2]));
  return {mx::astype(mx::reshape(out, {batch, in[0].shape(1), in[2].shape(3)}), in[0].dtype())};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const auto op = settings(in, attrs);
  if (std::max(op.width, op.value_width) > Paged::max_width || op.group() > Paged::max_group) {
    return {};
  }
  auto run = [op](const Call& call, Member& member) {
    const int64_t room = op.table_blocks * op.block_size;
    for (int64_t b = 0; b < op.batch; ++b) {
      const int64_t length = call.in[4].as<int32_t>()[b];
      if (length < 0 || length > room) {
        fail(
            name,
            "context_lens must be from 0 to ",
            room,
            ", the rows of a sequence's blocks, but one is ",
            length,
            ".");
      }
    }
    HWY_DYNAMIC_DISPATCH(paged_attention_kernel)(op, call, member);
  };
  return {run, static_cast<size_t>(op.items() * op.splits() * op.part_floats()) * sizeof(float)};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device& device) {
  const auto op = settings(in, attrs);
  const int64_t heads = op.batch * op.q_heads;
  const int64_t widest = std::max(op.width, op.value_width);
  if (widest > Paged::max_width ||
      !cuda::countable(
          {heads, op.width, op.value_width, op.blocks, op.block_size, op.table_blocks})) {
    return {};
  }
  // Two blocks a multiprocessor, each warp of which has at least 32 keys where all are there.
  const int64_t room = op.table_blocks * op.block_size;
  const int64_t splits = std::clamp<int64_t>(2 * device.multiprocessors / heads, 1, room / 128 + 1);
  const int64_t parts = 4 * splits;
  const auto dtype = cuda::text_of(in[0].dtype);
  cuda::Launch attend;
  attend.source = "paged.cuh";
  attend.kernel = "paged_attention<" + dtype + ", " +
      std::to_string(std::bit_ceil(static_cast<uint64_t>((widest + 31) / 32))) + ">";
  attend.grid = {static_cast<uint32_t>(heads), static_cast<uint32_t>(splits), 1};
  attend.block[0] = 128;
  for (int i = 0; i < 5; ++i) {
    attend.arguments.push_back(cuda::in(i));
  }
  attend.arguments.insert(
      attend.arguments.end(),
      {cuda::scratch(),
       cuda::i32(op.q_heads),
       cuda::i32(op.kv_heads),
       cuda::i32(op.width),
       cuda::i32(op.value_width),
       cuda::i32(op.blocks),
       cuda::i32(op.block_size),
       cuda::i32(op.table_blocks),
       cuda::f32(static_cast<double>(op.scale))});
  cuda::Launch merge;
  merge.source = "paged.cuh";
  merge.kernel = "merge_parts<" + dtype + ">";
  merge.grid[0] = static_cast<uint32_t>(heads);
  merge.block[0] = 128;
  merge.arguments = {
      cuda::scratch(),
      cuda::in(4),
      cuda::out(0),
      cuda::i32(op.q_heads),
      cuda::i32(parts),
      cuda::i32(op.value_width)};
  return {{attend, merge}, static_cast<size_t>(heads * parts * (op.value_width + 2)) * 4};
}

struct Example {
  int batch = 2;
  int q_heads = 8;
  int kv_heads = 2;
  int width = 64;
  int value_width = 64;
  int blocks = 7;
  int block_size = 16;
  std::vector<int> table = {3, 0, 5, 1, 6, -1};
  std::vector<int> lengths = {33, 17};
};

Case example(std::string label, Example e) {
  return {
      std::move(label),
      [e](mx::Dtype dtype) {
        const auto columns = static_cast<int>(e.table.size()) / std::max(e.batch, 1);
        return Arrays{
            random_case({e.batch, e.q_heads, e.width}, dtype, 1),
            random_case({e.blocks, e.block_size, e.kv_heads, e.width}, dtype, 2),
            random_case({e.blocks, e.block_size, e.kv_heads, e.value_width}, dtype, 3),
            mx::array(e.table.data(), {e.batch, columns}, mx::int32),
            mx::array(e.lengths.data(), {e.batch}, mx::int32)};
      },
      {{"scale", 1 / std::sqrt(static_cast<double>(e.width))}}};
}

std::vector<int> in_order(int blocks) {
  std::vector<int> table;
  for (int i = 0; i < blocks; ++i) {
    table.push_back(blocks - 1 - i);
  }
  return table;
}

} // namespace

ZMLX_OP(paged_attention)
    .args({"q", "k_cache", "v_cache", "block_table", "context_lens"})
    .doc(
        "softmax(scale * q keys^T) values for one token a sequence, q [B, H, D] (Kwon et al., 2023). "
        "Key j of sequence b is row j % BS of block block_table[b, j / BS] of k_cache [N, BS, Hkv, D], "
        "for j < context_lens[b]; v_cache [N, BS, Hkv, Dv] alike; int32 tables and lengths. Computed "
        "in float32; an empty context gives zeros. Entries of the table past a context are not read.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("two sequences", {}),
        example(
            "long",
            {.batch = 1,
             .q_heads = 4,
             .kv_heads = 2,
             .blocks = 20,
             .block_size = 32,
             .table = in_order(20),
             .lengths = {619}}),
        example(
            "one empty",
            {.batch = 3,
             .q_heads = 3,
             .kv_heads = 1,
             .width = 33,
             .value_width = 31,
             .block_size = 32,
             .table = {2, 4, 6},
             .lengths = {31, 0, 32}}),
        example(
            "smallest",
            {.batch = 1,
             .q_heads = 1,
             .kv_heads = 1,
             .width = 1,
             .value_width = 1,
             .blocks = 1,
             .block_size = 1,
             .table = {0},
             .lengths = {1}}),
        example("none", {.batch = 0, .table = {}, .lengths = {}}),
    });

} // namespace zmlx
#endif
