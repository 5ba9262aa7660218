// zmlx/ops/rope_cache_update.cpp: q and k rotated by tables, k and v written to a KV cache, plain
// or in blocks.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/rope_cache_update.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/rope-inl.h"
#include "zmlx/ops/op.h"
#include "zmlx/runtime/error.h"

#ifndef ZMLX_OPS_ROPE_CACHE_UPDATE_CPP_
#define ZMLX_OPS_ROPE_CACHE_UPDATE_CPP_
namespace zmlx {
namespace {

/// Sizes of one call. A plain cache is one of blocks in which sequence b has block b alone.
struct CacheUpdate {
  cpu::Rope rope;
  bool heads_first;
  bool paged;
  int64_t batch;
  int64_t tokens;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t width;
  int64_t value_width;
  int64_t positions; // that the tables have
  int64_t blocks;
  int64_t block_size;
  int64_t table_blocks; // of a sequence
  bool own_offsets;

  int64_t heads() const {
    return q_heads + 2 * kv_heads;
  }
  /// The row of a [B, T, H, ..] or [B, H, T, ..] array, by its axes' extents.
  int64_t row(int64_t b, int64_t t, int64_t head, int64_t count, int64_t length) const {
    return heads_first ? (b * count + head) * length + t : (b * length + t) * count + head;
  }
};

/// The block and the place in it of a token; an error in words where there is none.
struct Slot {
  int64_t block;
  int64_t place;
};

Slot slot_of(const CacheUpdate& op, const Call& call, int64_t b, int64_t position) {
  constexpr const char* name = "rope_cache_update";
  const int64_t capacity = op.table_blocks * op.block_size;
  const int64_t room = capacity < op.positions ? capacity : op.positions;
  if (position < 0 || position >= room) {
    fail(
        name,
        "positions must be from 0 to below ",
        room,
        ", which cos, sin and the cache have room for, but one is ",
        position,
        ".");
  }
  if (!op.paged) {
    return {b, position};
  }
  const int64_t block = call.in[6].as<int32_t>()[b * op.table_blocks + position / op.block_size];
  if (block < 0 || block >= op.blocks) {
    fail(name, "blocks must be from 0 to below ", op.blocks, " but one is ", block, ".");
  }
  return {block, position % op.block_size};
}

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Units are (token, head): a token's q heads, then its k heads, then its v heads.
template <typename T, typename Table>
void cache_update_units(const Call& call, const CacheUpdate& op, Range units) {
  const T* q = call.in[0].as<T>();
  const T* k = call.in[1].as<T>();
  const T* v = call.in[2].as<T>();
  const int32_t* offsets = call.in[5].as<int32_t>();
  T* out = call.out[0].as<T>();
  T* keys = call.out[1].as<T>();
  T* values = call.out[2].as<T>();
  const int64_t half = op.rope.dims / 2;
  const size_t width = static_cast<size_t>(op.width);
  Rotation rotation;
  Slot slot{};
  int64_t turned = -1;
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t token = unit / op.heads();
    const int64_t b = token / op.tokens;
    const int64_t t = token % op.tokens;
    if (token != turned) {
      const int64_t position = offsets[op.own_offsets ? b : 0] + t;
      slot = slot_of(op, call, b, position);
      turn_by(
          rotation,
          call.in[3].as<Table>() + position * half,
          call.in[4].as<Table>() + position * half,
          op.rope);
      turned = token;
    }
    int64_t head = unit % op.heads();
    if (head < op.q_heads) {
      const int64_t at = op.row(b, t, head, op.q_heads, op.tokens) * op.width;
      rotate_row(rotation, op.rope, q + at, width, out + at);
      continue;
    }
    head -= op.q_heads;
    const bool is_key = head < op.kv_heads;
    head -= is_key ? 0 : op.kv_heads;
    const int64_t from = op.row(b, t, head, op.kv_heads, op.tokens);
    const int64_t to = op.row(slot.block, slot.place, head, op.kv_heads, op.block_size);
    if (is_key) {
      rotate_row(rotation, op.rope, k + from * op.width, width, keys + to * op.width);
    } else {
      const T* value = v + from * op.value_width;
      std::copy(value, value + op.value_width, values + to * op.value_width);
    }
  }
}

template <typename T>
void cache_update_of(const Call& call, const CacheUpdate& op, Range units) {
  if (call.in[3].dtype() == Dtype::f32) {
    cache_update_units<T, float>(call, op, units);
  } else {
    cache_update_units<T, T>(call, op, units);
  }
}

void rope_cache_update_kernel(const Call& call, const CacheUpdate& op, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return cache_update_of<hwy::float16_t>(call, op, units);
    case Dtype::bf16:
      return cache_update_of<hwy::bfloat16_t>(call, op, units);
    default:
      return cache_update_of<float>(call, op, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/rope.h"

namespace zmlx {

HWY_EXPORT(rope_cache_update_kernel);

namespace {

constexpr const char* name = "rope_cache_update";

/// Needs inputs of the right number and ranks.
CacheUpdate settings(const Types& in, const Attrs& attrs) {
  CacheUpdate op{};
  op.heads_first = attrs.integer("heads_first", 0) != 0;
  op.paged = attrs.integer("paged", 0) != 0;
  const Shape& q = in[0].shape;
  const Shape& keys = in[in.size() - 2].shape;
  const int head_axis = op.heads_first ? 1 : 2;
  const int row_axis = op.heads_first ? 2 : 1;
  op.rope = {2 * in[3].shape[1], attrs.integer("traditional", 0) != 0};
  op.batch = q[0];
  op.tokens = q[row_axis];
  op.q_heads = q[head_axis];
  op.kv_heads = in[1].shape[head_axis];
  op.width = q[3];
  op.value_width = in[2].shape[3];
  op.positions = in[3].shape[0];
  op.blocks = keys[0];
  op.block_size = keys[row_axis];
  op.table_blocks = op.paged ? in[6].shape[1] : 1;
  op.own_offsets = in[5].shape.rank() == 1;
  return op;
}

Types types(const Types& in, const Attrs& attrs) {
  const bool paged = attrs.integer("paged", 0) != 0;
  expect_inputs(name, in, paged ? 9 : 8);
  const char* names[] = {"q", "k", "v"};
  for (size_t i = 0; i < 3; ++i) {
    expect_rank(name, names[i], in[i], 4);
    expect_dtype(name, names[i], in[i], in[0].dtype);
  }
  expect_floating(name, "q", in[0]);
  expect_rank(name, "cos", in[3], 2);
  if (in[3].dtype != Dtype::f32) {
    expect_dtype(name, "cos", in[3], in[0].dtype);
  }
  expect_dtype(name, "sin", in[4], in[3].dtype);
  expect_shape(name, "sin", in[4], in[3].shape);
  const Type& keys = in[in.size() - 2];
  const Type& values = in[in.size() - 1];
  for (auto [label, cache] : {std::pair{"k_cache", &keys}, std::pair{"v_cache", &values}}) {
    expect_rank(name, label, *cache, 4);
    expect_dtype(name, label, *cache, in[0].dtype);
  }
  if (paged) {
    expect_rank(name, "block_table", in[6], 2);
    expect_dtype(name, "block_table", in[6], Dtype::i32);
  }
  const auto op = settings(in, attrs);
  auto of = [&](int64_t rows, int64_t length, int64_t heads, int64_t width) {
    return op.heads_first ? Shape{rows, heads, length, width} : Shape{rows, length, heads, width};
  };
  const int64_t blocks = paged ? op.blocks : op.batch;
  expect_shape(name, "k", in[1], of(op.batch, op.tokens, op.kv_heads, op.width));
  expect_shape(name, "v", in[2], of(op.batch, op.tokens, op.kv_heads, op.value_width));
  expect_shape(name, "k_cache", keys, of(blocks, op.block_size, op.kv_heads, op.width));
  expect_shape(name, "v_cache", values, of(blocks, op.block_size, op.kv_heads, op.value_width));
  if (op.rope.dims < 2 || op.rope.dims > op.width) {
    fail(
        name,
        "cos and sin must have 1 to ",
        op.width / 2,
        " columns, half of q's last axis, but got ",
        op.rope.dims / 2,
        ".");
  }
  if (op.own_offsets) {
    expect_dtype(name, "offset", in[5], Dtype::i32);
    expect_shape(name, "offset", in[5], {op.batch});
  } else {
    expect_offset(name, in[5]);
  }
  if (paged) {
    expect_shape(name, "block_table", in[6], {op.batch, op.table_blocks});
  }
  return {in[0], keys, values};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  Types types;
  for (auto& x : in) {
    Shape shape(x.shape().begin(), x.shape().end());
    types.push_back({Dtype::f32, shape});
  }
  const auto op = settings(types, attrs);
  auto heads_last = [&](const mx::array& x) { return op.heads_first ? mx::swapaxes(x, 1, 2) : x; };
  auto position = mx::arange(static_cast<int>(op.tokens)) +
      mx::reshape(in[5], {op.own_offsets ? static_cast<int>(op.batch) : 1, 1});
  position = mx::broadcast_to(position, {static_cast<int>(op.batch), static_cast<int>(op.tokens)});
  auto table = [&](const mx::array& rows) {
    return mx::expand_dims(mx::astype(mx::take(rows, position, 0), mx::float32), 2);
  };
  auto rotated = [&](const mx::array& x) {
    auto y = rotated_reference(
        mx::astype(heads_last(x), mx::float32), table(in[3]), table(in[4]), op.rope.traditional);
    return mx::astype(y, x.dtype());
  };
  const auto size = mx::array(static_cast<int>(op.block_size));
  auto row = position;
  if (op.paged) {
    auto block = mx::take_along_axis(in[6], mx::floor_divide(position, size), 1);
    row = block * size + mx::remainder(position, size);
  } else {
    row = position + mx::expand_dims(mx::arange(static_cast<int>(op.batch)), 1) * size;
  }
  auto written = [&](const mx::array& cache, const mx::array& rows) {
    auto whole = heads_last(cache);
    auto flat = mx::scatter(mx::flatten(whole, 0, 1), row, mx::expand_dims(rows, 2), 0);
    return heads_last(mx::reshape(flat, whole.shape()));
  };
  return {
      heads_last(rotated(in[0])),
      written(in[in.size() - 2], rotated(in[1])),
      written(in[in.size() - 1], heads_last(in[2]))};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const auto op = settings(in, attrs);
  if (op.rope.dims > cpu::max_rope_dims) {
    return {};
  }
  return {[op](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(rope_cache_update_kernel)
    (call, op, member.split(op.batch * op.tokens * op.heads()));
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  const auto op = settings(in, attrs);
  const int64_t rows = op.batch * op.tokens * op.heads();
  if (!cuda::countable({rows, op.width, op.blocks}) || op.positions == 0) {
    return {};
  }
  const std::string flags = ", " + cuda::text_of(op.rope.traditional) + ", " +
      cuda::text_of(op.heads_first) + ", " + cuda::text_of(op.paged) + ">";
  auto launch = cuda::thread_a_unit(
      "rotary.cuh",
      "rope_cache_update<" + cuda::text_of(in[0].dtype) + ", " + cuda::text_of(in[3].dtype) + flags,
      rows * ((std::max(op.width, op.value_width) + 1) / 2));
  const auto cache = static_cast<int>(in.size()) - 2;
  for (int i = 0; i < 6; ++i) {
    launch.arguments.push_back(cuda::in(i));
  }
  launch.arguments.insert(
      launch.arguments.end(),
      {cuda::in(op.paged ? 6 : 5),
       cuda::out(0),
       cuda::out(1),
       cuda::out(2),
       cuda::in_dim(cache, op.heads_first ? 2 : 1),
       cuda::i32(rows),
       cuda::i32(op.tokens),
       cuda::i32(op.q_heads),
       cuda::i32(op.kv_heads),
       cuda::i32(op.width),
       cuda::i32(op.value_width),
       cuda::i32(op.rope.dims / 2),
       cuda::i32(op.positions),
       cuda::i32(op.blocks),
       cuda::i32(op.table_blocks),
       cuda::i32(op.own_offsets)});
  return {{launch}, 0};
}

/// Only the new rows of the caches are written; the rest stays where it is.
size_t traffic(const Types& in, const Types&, const Attrs&) {
  return 2 * (in[0].bytes() + in[1].bytes() + in[2].bytes());
}

struct Example {
  int batch = 1;
  int tokens = 1;
  int q_heads = 8;
  int kv_heads = 2;
  int width = 64;
  int value_width = 64;
  int dims = 64;
  int capacity = 40;
  std::vector<int> offsets = {3}; // one, or one a sequence
  std::vector<int> table = {}; // blocks; none: a plain cache
};

Case example(std::string label, Example e, Attrs attrs = {}) {
  const bool paged = !e.table.empty();
  const bool first = attrs.integer("heads_first", 0) != 0;
  attrs.set("paged", int64_t{paged});
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto shape = [&](int rows, int length, int heads, int width) {
          return first ? mx::Shape{rows, heads, length, width}
                       : mx::Shape{rows, length, heads, width};
        };
        auto angle = random_case({64, e.dims / 2}, mx::float32, 4, 3);
        Arrays in = {
            random_case(shape(e.batch, e.tokens, e.q_heads, e.width), dtype, 1),
            random_case(shape(e.batch, e.tokens, e.kv_heads, e.width), dtype, 2),
            random_case(shape(e.batch, e.tokens, e.kv_heads, e.value_width), dtype, 3),
            mx::cos(angle),
            mx::sin(angle)};
        const auto count = static_cast<int>(e.offsets.size());
        in.push_back(
            count == 1 ? mx::array(e.offsets[0]) : mx::array(e.offsets.data(), {count}, mx::int32));
        if (paged) {
          const auto blocks = static_cast<int>(e.table.size()) / e.batch;
          in.push_back(mx::array(e.table.data(), {e.batch, blocks}, mx::int32));
        }
        const int rows = paged ? 7 : e.batch;
        in.push_back(random_case(shape(rows, e.capacity, e.kv_heads, e.width), dtype, 5));
        in.push_back(random_case(shape(rows, e.capacity, e.kv_heads, e.value_width), dtype, 6));
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(rope_cache_update)
    .args({"q", "k", "v", "cos", "sin", "offset", "*rest"})
    .doc(
        "q [B, T, Hq, D] and k [B, T, Hkv, D] rotated as in apply_rope by rows offset + t of cos and "
        "sin [P, dims / 2] (float32 or q's dtype); offset: int32, one or [B]. Gives q', and k_cache "
        "[B, C, Hkv, D] and v_cache [B, C, Hkv, Dv] with the rows at those positions replaced by k' "
        "and v [B, T, Hkv, Dv], the others kept; in place when nothing else holds them. paged=1: "
        "caches [N, BS, Hkv, D], and position p of sequence b is row p % BS of block block_table[b, p "
        "/ BS] (int32 [B, M]). heads_first=1: [.., H, T, D] everywhere. Inputs: q, k, v, cos, sin, "
        "offset, [block_table], k_cache, v_cache.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .traffic(traffic)
    .in_place(1, -2)
    .in_place(2, -1)
    .cases({
        example("decode", {.batch = 3, .offsets = {5, 0, 39}}),
        example(
            "prompt",
            {.batch = 2, .tokens = 31, .q_heads = 3, .kv_heads = 3, .value_width = 33},
            {{"heads_first", int64_t{1}}}),
        example(
            "paged decode",
            {.batch = 2, .capacity = 8, .offsets = {17, 7}, .table = {5, 1, 0, 2, -1, -1}}),
        example(
            "paged prompt",
            {.batch = 2, .tokens = 13, .dims = 34, .capacity = 8, .table = {6, 3, 4, 1}},
            {{"traditional", int64_t{1}}}),
        example(
            "paged, heads first",
            {.tokens = 9, .width = 33, .dims = 32, .capacity = 5, .table = {2, 0, 6}},
            {{"heads_first", int64_t{1}}}),
        example("empty", {.tokens = 0}),
    });

} // namespace zmlx
#endif
