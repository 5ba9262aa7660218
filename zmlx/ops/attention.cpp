// zmlx/ops/attention.cpp: softmax(q k^T) v over a KV cache, in one pass over keys and values.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/attention.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/attention-inl.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

void attention_kernel(const cpu::Attention& op, const Call& call, Member& member) {
  cpu::AttentionInput in{
      call.in[0], call.in[1], call.in[2], 0, nullptr, nullptr, call.out[0], nullptr};
  in.scratch = reinterpret_cast<float*>(call.scratch);
  if (op.mask == cpu::MaskKind::causal) {
    in.offset = *call.in[3].as<int32_t>();
    in.positions = op.padded ? call.in[4].as<int32_t>() : nullptr;
  } else if (op.mask == cpu::MaskKind::array) {
    in.mask = &call.in[3];
  }
  switch (in.q.dtype()) {
    case Dtype::f16:
      return attend<hwy::float16_t>(op, in, member);
    case Dtype::bf16:
      return attend<hwy::bfloat16_t>(op, in, member);
    default:
      return attend<float>(op, in, member);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/attention.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(attention_kernel);

namespace {

constexpr const char* name = "attention";

cpu::MaskKind mask_kind(const Attrs& attrs) {
  std::string text = attrs.has("mask") ? attrs.text("mask") : "none";
  if (text == "none") {
    return cpu::MaskKind::none;
  }
  if (text == "causal") {
    return cpu::MaskKind::causal;
  }
  if (text == "array") {
    return cpu::MaskKind::array;
  }
  fail(name, "mask must be none, causal or array but got ", text, ".");
}

/// Needs inputs that types() has accepted.
cpu::Attention settings(const Types& in, const Attrs& attrs) {
  cpu::Attention op;
  op.scale = static_cast<float>(attrs.real("scale"));
  op.mask = mask_kind(attrs);
  op.window = attrs.integer("window", 0);
  op.padded = attrs.integer("padded", 0) != 0;
  op.heads_last = attrs.integer("heads_last", 0) != 0;
  op.batch = in[0].shape[0];
  op.q_heads = in[0].shape[op.heads_last ? 2 : 1];
  op.tokens = in[0].shape[op.heads_last ? 1 : 2];
  op.kv_heads = in[1].shape[1];
  op.width = in[0].shape[3];
  op.value_width = in[2].shape[3];
  return op;
}

void expect_mask(const Type& mask, const Type& q, const Shape& scores) {
  if (mask.dtype != Dtype::boolean && mask.dtype != q.dtype) {
    fail(name, "mask must be bool or ", name_of(q.dtype), " but got ", name_of(mask.dtype), ".");
  }
  bool fits = mask.shape.rank() <= 4;
  for (int i = 1; fits && i <= mask.shape.rank(); ++i) {
    fits = mask.shape[-i] == 1 || mask.shape[-i] == scores[-i];
  }
  if (!fits) {
    fail(
        name,
        "mask must broadcast to ",
        to_string(scores),
        " but got shape ",
        to_string(mask.shape),
        ".");
  }
}

Types types(const Types& in, const Attrs& attrs) {
  auto kind = mask_kind(attrs);
  bool padded = attrs.integer("padded", 0) != 0;
  if (padded && kind != cpu::MaskKind::causal) {
    fail(name, "padded=1 needs mask=causal.");
  }
  expect_inputs(name, in, kind == cpu::MaskKind::none ? 3 : padded ? 5 : 4);
  expect_rank(name, "q", in[0], 4);
  expect_rank(name, "keys", in[1], 4);
  expect_rank(name, "values", in[2], 4);
  expect_floating(name, "q", in[0]);
  expect_dtype(name, "keys", in[1], in[0].dtype);
  expect_dtype(name, "values", in[2], in[0].dtype);
  auto op = settings(in, attrs);
  auto& keys = in[1].shape;
  expect_shape(name, "keys", in[1], {op.batch, op.kv_heads, keys[2], op.width});
  expect_shape(name, "values", in[2], {op.batch, op.kv_heads, keys[2], op.value_width});
  if (op.kv_heads == 0 || op.q_heads % op.kv_heads != 0) {
    fail(
        name,
        "query heads must be a multiple of KV heads but got ",
        op.q_heads,
        " and ",
        op.kv_heads,
        ".");
  }
  if (keys[2] == 0) {
    fail(name, "keys must have at least one row.");
  }
  if (op.window < 0 || (op.window > 0 && kind != cpu::MaskKind::causal)) {
    fail(name, "window must be positive and needs mask=causal but got ", op.window, ".");
  }
  if (kind == cpu::MaskKind::causal) {
    expect_offset(name, in[3]);
    if (padded) {
      expect_positions(name, in[4], op.batch);
    }
  } else if (kind == cpu::MaskKind::array) {
    expect_mask(in[3], in[0], {op.batch, op.q_heads, op.tokens, keys[2]});
  }
  Type out = in[0];
  out.shape[3] = op.value_width;
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto kind = mask_kind(attrs);
  bool heads_last = attrs.integer("heads_last", 0) != 0;
  auto q = heads_last ? mx::swapaxes(in[0], 1, 2) : in[0];
  std::optional<mx::array> mask;
  if (kind == cpu::MaskKind::array) {
    mask = in[3];
  } else if (kind == cpu::MaskKind::causal) {
    auto last = mx::reshape(in[3], {1, 1}) + mx::expand_dims(mx::arange(q.shape(2)), 1);
    auto key = mx::expand_dims(mx::arange(in[1].shape(2)), 0);
    mask = key <= last;
    if (auto window = static_cast<int>(attrs.integer("window", 0))) {
      mask = mx::logical_and(*mask, key > last - mx::array(window));
    }
    if (attrs.integer("padded", 0)) {
      auto padding = mx::reshape(in[3], {1, 1, 1, 1}) - mx::reshape(in[4], {-1, 1, 1, 1});
      mask = mx::logical_and(*mask, padding <= key);
    }
  }
  auto out = mx::fast::scaled_dot_product_attention(
      q, in[1], in[2], static_cast<float>(attrs.real("scale")), mask ? "array" : "", mask);
  if (attrs.integer("padded", 0)) {
    out = mx::where(mx::any(*mask, -1, true), out, mx::array(0, out.dtype()));
  }
  return {heads_last ? mx::swapaxes(out, 1, 2) : out};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(in, attrs);
  if (std::max(op.width, op.value_width) > cpu::Attention::max_width) {
    return {};
  }
  auto run = [op](const Call& call, Member& member) {
    if (op.mask == cpu::MaskKind::causal) {
      expect_room(name, *call.in[3].as<int32_t>(), op.tokens, call.in[1].shape()[2]);
    }
    HWY_DYNAMIC_DISPATCH(attention_kernel)(op, call, member);
  };
  return {run, op.scratch()};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device& device) {
  return cuda::attention(
      settings(in, attrs), in[0].dtype, in.size() > 3 ? &in[3] : nullptr, device);
}

struct Example {
  int batch = 1;
  int q_heads = 8;
  int kv_heads = 2;
  int tokens = 1;
  int capacity = 64;
  int width = 64;
  int value_width = 64;
  int offset = 0;
  int padding = 0; // more keys of padding in each sequence than in the one before
};

Case example(std::string label, Example e, std::string mask, Attrs attrs = {}) {
  attrs.set("mask", mask).set("scale", 1 / std::sqrt(static_cast<double>(e.width)));
  bool heads_last = attrs.integer("heads_last", 0) != 0;
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        mx::Shape q = {e.batch, e.q_heads, e.tokens, e.width};
        if (heads_last) {
          std::swap(q[1], q[2]);
        }
        Arrays in = {
            random_case(q, dtype, 1),
            random_case({e.batch, e.kv_heads, e.capacity, e.width}, dtype, 2),
            random_case({e.batch, e.kv_heads, e.capacity, e.value_width}, dtype, 3)};
        if (mask == "causal") {
          in.push_back(mx::array(e.offset));
          if (attrs.integer("padded", 0)) {
            in.push_back(mx::array(e.offset) - mx::arange(e.batch) * mx::array(e.padding));
          }
        } else if (mask == "array") {
          in.push_back(random_case({e.batch, 1, e.tokens, e.capacity}, dtype, 4));
        }
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(attention)
    .args({"q", "keys", "values", "*rest"})
    .doc(
        "softmax(scale * q keys^T + mask) values, accumulated in float32 (Vaswani et al., 2017; in "
        "one pass as Dao et al., 2022). q [B, Hq, T, D], or [B, T, Hq, D] when heads_last=1; keys "
        "[B, Hkv, C, D]; values [B, Hkv, C, Dv]; Hq a multiple of Hkv. mask=none: all C keys; "
        "mask=causal: a fourth input offset (one int32), and token t sees keys j <= offset + t and, "
        "with window > 0, j > offset + t - window; later keys are not read; with padded=1 a fifth input positions (int32 [B]), and sequence b sees "
        "no key before offset - positions[b], a token that sees none giving zeros. mask=array: a fourth "
        "input, bool or additive, that broadcasts to [B, Hq, T, C]. Result: as q, Dv wide.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example(
            "decode",
            {.q_heads = 32,
             .kv_heads = 4,
             .capacity = 512,
             .width = 128,
             .value_width = 128,
             .offset = 300},
            "causal",
            {{"heads_last", int64_t{1}}}),
        example(
            "decode one head",
            {.q_heads = 1, .kv_heads = 1, .capacity = 1500, .offset = 1400},
            "causal"),
        example("prompt", {.batch = 2, .tokens = 65, .capacity = 80, .offset = 10}, "causal"),
        example(
            "prompt heads last",
            {.q_heads = 4, .kv_heads = 4, .tokens = 130, .capacity = 256, .offset = 0},
            "causal",
            {{"heads_last", int64_t{1}}}),
        example(
            "window",
            {.tokens = 70, .capacity = 200, .offset = 100},
            "causal",
            {{"window", int64_t{33}}}),
        example(
            "window decode",
            {.capacity = 400, .offset = 390},
            "causal",
            {{"window", int64_t{200}}}),
        example("none", {.tokens = 2, .capacity = 37, .width = 80, .value_width = 96}, "none"),
        example(
            "none many",
            {.q_heads = 3,
             .kv_heads = 1,
             .tokens = 33,
             .capacity = 190,
             .width = 33,
             .value_width = 31},
            "none"),
        example(
            "array",
            {.batch = 2, .tokens = 3, .capacity = 33, .width = 32, .value_width = 32},
            "array"),
        example(
            "array many",
            {.tokens = 31, .capacity = 131, .width = 96, .value_width = 96},
            "array"),
        example(
            "widest",
            {.q_heads = 2,
             .kv_heads = 1,
             .tokens = 9,
             .capacity = 70,
             .width = 256,
             .value_width = 256,
             .offset = 61},
            "causal"),
        example(
            "smallest",
            {.q_heads = 1, .kv_heads = 1, .capacity = 1, .width = 1, .value_width = 1},
            "none"),
        example("empty", {.tokens = 0}, "none"),
        example(
            "padded decode",
            {.batch = 3, .capacity = 512, .offset = 400, .padding = 150},
            "causal",
            {{"padded", int64_t{1}}, {"heads_last", int64_t{1}}}),
        example(
            "padded prompt",
            {.batch = 2, .tokens = 40, .capacity = 64, .offset = 3, .padding = 17},
            "causal",
            {{"padded", int64_t{1}}}),
    });

} // namespace zmlx
#endif
