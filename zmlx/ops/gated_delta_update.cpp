// zmlx/ops/gated_delta_update.cpp: the gated delta rule of linear attention, its state passed once
// over all tokens.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/gated_delta_update.cpp"
#include <algorithm>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/gated_delta_chunks-inl.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// One token's key and query, also times the gate, in float32.
struct GatedToken {
  HWY_ALIGN float k[GatedDelta::max_key];
  HWY_ALIGN float gated_k[GatedDelta::max_key];
  HWY_ALIGN float gated_q[GatedDelta::max_key];
  HWY_ALIGN float gate[GatedDelta::max_key];
  float kq; // their product
};

template <typename T>
void read_token(
    const GatedDelta& op,
    const Call& call,
    int64_t token,
    int64_t head,
    GatedToken& to) {
  const int64_t n = op.key;
  const int64_t k_head = token * op.k_heads + head / (op.v_heads / op.k_heads);
  const T* q = call.in[0].as<T>() + k_head * n;
  const T* k = call.in[1].as<T>() + k_head * n;
  const int64_t gate = token * op.v_heads + head;
  const Floats one = hn::Set(F32(), op.wide_gate ? 0 : number_at(call.in[3], gate));
  if (op.wide_gate) {
    for (int64_t i = 0; i < n; ++i) {
      to.gate[i] = number_at(call.in[3], gate * n + i);
    }
  }
  Floats kq = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(n - i);
    const Floats g = op.wide_gate ? load_some(to.gate + i, left) : one;
    const Floats key = load_some(k + i, left);
    const Floats query = load_some(q + i, left);
    kq = hn::MulAdd(key, query, kq);
    store_some(g, to.gate + i, left);
    store_some(key, to.k + i, left);
    store_some(hn::Mul(g, key), to.gated_k + i, left);
    store_some(hn::Mul(g, query), to.gated_q + i, left);
  }
  to.kq = sum(kq);
}

/// One row of the state: decays, learns v by beta, and answers the query.
HWY_INLINE float
step_row(const GatedToken& at, int64_t n, float v, float beta, const float* from, float* to) {
  Floats known = hn::Zero(F32());
  Floats answer = known;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(n - i);
    const Floats s = load_some(from + i, left);
    known = hn::MulAdd(s, load_some(at.gated_k + i, left), known);
    answer = hn::MulAdd(s, load_some(at.gated_q + i, left), answer);
  }
  const float delta = (v - sum(known)) * beta;
  const Floats change = hn::Set(F32(), delta);
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(n - i);
    const Floats decayed = hn::Mul(load_some(from + i, left), load_some(at.gate + i, left));
    store_some(hn::MulAdd(change, load_some(at.k + i, left), decayed), to + i, left);
  }
  return sum(answer) + delta * at.kq;
}

/// Whether tokens come in chunks: where a vector is long enough, and filled.
HWY_INLINE bool in_chunks(const GatedDelta& op) {
  return !op.wide_gate && DeltaChunk::tokens >= 8 && op.tokens >= DeltaChunk::tokens;
}

/// Blocks of rows of one head, as many as there are among `units`, are together in chunks.
template <typename T>
void gated_delta_chunks(const GatedDelta& op, const Call& call, Range units) {
  while (units.begin < units.end) {
    const int64_t item = units.begin / op.blocks(); // sequence and head
    const int64_t end = std::min(units.end, (item + 1) * op.blocks());
    const int64_t first = units.begin % op.blocks() * GatedDelta::block;
    const int64_t last = (end - item * op.blocks()) * GatedDelta::block;
    delta_chunks<T>(op, call, item, first, std::min(op.value, last));
    units.begin = end;
  }
}

/// Units are blocks of rows of (sequence, head): each runs over all tokens by itself.
template <typename T>
void gated_delta_units(const GatedDelta& op, const Call& call, Range units) {
  if (in_chunks(op)) {
    return gated_delta_chunks<T>(op, call, units);
  }
  GatedToken token;
  const float* state = call.in[5].as<float>();
  const bool* mask = op.masked ? call.in[6].as<bool>() : nullptr;
  T* y = call.out[0].as<T>();
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t item = unit / op.blocks(); // sequence and head
    const int64_t b = item / op.v_heads;
    const int64_t head = item % op.v_heads;
    const int64_t first = unit % op.blocks() * GatedDelta::block;
    const int64_t last = std::min(op.value, first + GatedDelta::block);
    float* out = call.out[1].as<float>() + item * op.value * op.key;
    const float* from = state + item * op.value * op.key;
    for (int64_t t = 0; t < op.tokens; ++t) {
      const int64_t at = b * op.tokens + t;
      const int64_t row = (at * op.v_heads + head) * op.value;
      if (mask && !mask[at]) {
        std::fill(y + row + first, y + row + last, T{});
        continue;
      }
      read_token<T>(op, call, at, head, token);
      const float beta = number_at(call.in[4], at * op.v_heads + head);
      for (int64_t r = first; r < last; ++r) {
        const float v = number_at(call.in[2], row + r);
        const float answer = step_row(token, op.key, v, beta, from + r * op.key, out + r * op.key);
        store_n(hn::Set(F32(), answer), y + row + r, 1);
      }
      from = out;
    }
    if (from != out) { // no token changed it
      std::copy(from + first * op.key, from + last * op.key, out + first * op.key);
    }
  }
}

void gated_delta_kernel(const GatedDelta& op, const Call& call, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return gated_delta_units<hwy::float16_t>(op, call, units);
    case Dtype::bf16:
      return gated_delta_units<hwy::bfloat16_t>(op, call, units);
    default:
      return gated_delta_units<float>(op, call, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <bit>
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(gated_delta_kernel);

namespace {

constexpr const char* name = "gated_delta_update";

/// Needs inputs of the right ranks.
GatedDelta settings(const Types& in) {
  const Shape& q = in[0].shape;
  const Shape& v = in[2].shape;
  return {q[0], q[1], q[2], v[2], q[3], v[3], in[3].shape.rank() == 4, in.size() == 7};
}

Types types(const Types& in, const Attrs&) {
  if (in.size() != 6 && in.size() != 7) {
    fail(name, "expected 6 inputs, or 7 with a mask, but got ", in.size(), ".");
  }
  expect_floating(name, "q", in[0]);
  const char* names[] = {"q", "k", "v", "g", "beta", "state", "mask"};
  for (size_t i = 0; i < 3; ++i) {
    expect_rank(name, names[i], in[i], 4);
    expect_dtype(name, names[i], in[i], in[0].dtype);
  }
  for (size_t i = 3; i < 5; ++i) {
    if (in[i].dtype != Dtype::f32) {
      expect_dtype(name, names[i], in[i], in[0].dtype);
    }
  }
  const auto op = settings(in);
  if (op.k_heads == 0 || op.v_heads % op.k_heads != 0) {
    fail(
        name,
        "value heads must be a multiple of key heads but got ",
        op.v_heads,
        " and ",
        op.k_heads,
        ".");
  }
  expect_shape(name, "k", in[1], in[0].shape);
  expect_shape(name, "v", in[2], {op.batch, op.tokens, op.v_heads, op.value});
  if (op.wide_gate) {
    expect_shape(name, "g", in[3], {op.batch, op.tokens, op.v_heads, op.key});
  } else {
    expect_shape(name, "g", in[3], {op.batch, op.tokens, op.v_heads});
  }
  expect_shape(name, "beta", in[4], {op.batch, op.tokens, op.v_heads});
  expect_dtype(name, "state", in[5], Dtype::f32);
  expect_shape(name, "state", in[5], {op.batch, op.v_heads, op.value, op.key});
  if (op.masked) {
    expect_dtype(name, "mask", in[6], Dtype::boolean);
    expect_shape(name, "mask", in[6], {op.batch, op.tokens});
  }
  return {in[2], in[5]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  auto& v = in[2];
  const int tokens = v.shape(1);
  auto state = in[5];
  Arrays outputs;
  auto spread = [&](const mx::array& x) {
    return mx::repeat(mx::astype(x, mx::float32), v.shape(2) / x.shape(2), 2);
  };
  auto q = spread(in[0]);
  auto k = spread(in[1]);
  auto at = [](const mx::array& x, int t) { return mx::take(mx::astype(x, mx::float32), t, 1); };
  for (int t = 0; t < tokens; ++t) {
    auto gate = at(in[3], t);
    gate =
        mx::expand_dims(gate, gate.ndim() == 2 ? std::vector<int>{-1, -2} : std::vector<int>{-2});
    auto key = mx::expand_dims(at(k, t), -2);
    auto decayed = state * gate;
    auto known = mx::sum(decayed * key, -1);
    auto delta = (at(v, t) - known) * mx::expand_dims(at(in[4], t), -1);
    auto next = decayed + key * mx::expand_dims(delta, -1);
    auto y = mx::sum(next * mx::expand_dims(at(q, t), -2), -1);
    if (in.size() == 7) {
      auto kept = mx::expand_dims(mx::take(in[6], t, 1), {-1, -2});
      y = mx::where(kept, y, mx::array(0.0f));
      next = mx::where(mx::expand_dims(kept, -1), next, state);
    }
    state = next;
    outputs.push_back(y);
  }
  auto y = tokens ? mx::astype(mx::stack(outputs, 1), v.dtype()) : mx::zeros_like(v);
  return {y, state};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs&) {
  const auto op = settings(in);
  if (op.key > GatedDelta::max_key) {
    return {};
  }
  return {[op](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(gated_delta_kernel)
    (op, call, member.split(op.batch * op.v_heads * op.blocks()));
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device&) {
  const auto op = settings(in);
  const int64_t rows = op.batch * op.v_heads * op.value;
  if (op.key > GatedDelta::max_key || !cuda::countable({rows, op.key}) ||
      op.tokens > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  auto launch = cuda::warp_a_row("delta.cuh", "gated_delta<", rows);
  launch.grid[0] = static_cast<uint32_t>((rows + 3) / 4);
  launch.block[0] = 128;
  const auto per_lane = std::bit_ceil(static_cast<uint64_t>((op.key + 31) / 32));
  launch.kernel += cuda::text_of(in[0].dtype) + ", " + cuda::text_of(in[3].dtype) + ", " +
      cuda::text_of(in[4].dtype) + ", " + cuda::text_of(op.wide_gate) + ", " +
      cuda::text_of(op.masked) + ", " + std::to_string(per_lane) + ">";
  launch.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::in(2),
      cuda::in(3),
      cuda::in(4),
      cuda::in(op.masked ? 6 : 4),
      cuda::out(0),
      cuda::out(1),
      cuda::i32(rows),
      cuda::i32(op.tokens),
      cuda::i32(op.k_heads),
      cuda::i32(op.v_heads),
      cuda::i32(op.key),
      cuda::i32(op.value)};
  return {{launch}, 0};
}

struct Example {
  int batch = 1;
  int tokens = 1;
  int k_heads = 2;
  int v_heads = 4;
  int key = 32;
  int value = 32;
  bool wide_gate = false;
  bool masked = false;
};

Case example(std::string label, Example e) {
  return {
      std::move(label),
      [e](mx::Dtype dtype) {
        auto squashed = [](const mx::array& x) {
          return mx::astype(mx::sigmoid(mx::astype(x, mx::float32)), x.dtype());
        };
        mx::Shape gate = {e.batch, e.tokens, e.v_heads};
        auto beta = squashed(random_case(gate, dtype, 4));
        if (e.wide_gate) {
          gate.push_back(e.key);
        }
        const float unit = 1 / std::sqrt(static_cast<float>(e.key));
        Arrays in = {
            random_case({e.batch, e.tokens, e.k_heads, e.key}, dtype, 1, unit),
            random_case({e.batch, e.tokens, e.k_heads, e.key}, dtype, 2, unit),
            random_case({e.batch, e.tokens, e.v_heads, e.value}, dtype, 3),
            squashed(random_case(gate, mx::float32, 5)),
            beta,
            random_case({e.batch, e.v_heads, e.value, e.key}, mx::float32, 6)};
        if (e.masked) {
          in.push_back(random_case({e.batch, e.tokens}, mx::float32, 7) > mx::array(0.0f));
        }
        return in;
      },
      {}};
}

} // namespace

ZMLX_OP(gated_delta_update)
    .args({"q", "k", "v", "g", "beta", "state", "*mask"})
    .doc(
        "The gated delta rule (Yang et al., 2024): for each token and head, S = g S; S += beta (v - S "
        "k) k^T; y = S q. q and k [B, T, Hk, Dk], v [B, T, Hv, Dv] (Hv a multiple of Hk), g [B, T, Hv] "
        "or [B, T, Hv, Dk] and beta [B, T, Hv] in q's dtype or float32, state S [B, Hv, Dv, Dk] "
        "float32. Gives y [B, T, Hv, Dv] and the new state, in place when nothing else holds the old. "
        "A token whose mask (bool [B, T]) is false leaves the state and gives zeros. Prompts with one "
        "gate a token are computed in chunks (Yang et al., 2024, the WY form).")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .in_place(1, 5)
    .cases({
        example("decode", {.batch = 2, .key = 128, .value = 48}),
        example("prompt", {.tokens = 13, .value = 33}),
        example("chunks", {.batch = 2, .tokens = 67, .key = 33, .value = 43}),
        example("masked chunks", {.batch = 3, .tokens = 37, .key = 64, .masked = true}),
        example("gate of each element", {.tokens = 5, .key = 31, .value = 17, .wide_gate = true}),
        example("mask", {.batch = 3, .tokens = 7, .key = 33, .masked = true}),
        example(
            "mask and wide gate",
            {.tokens = 4, .k_heads = 1, .v_heads = 1, .wide_gate = true, .masked = true}),
        example("one", {.k_heads = 1, .v_heads = 1, .key = 1, .value = 1}),
        example("empty", {.tokens = 0}),
    });

} // namespace zmlx
#endif
