// zmlx/ops/rope.cpp: rotary position embedding of heads [B, H, T, D].
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/rope.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/rope-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_ROPE_CPP_
#define ZMLX_OPS_ROPE_CPP_
namespace zmlx {

constexpr int64_t rope_tokens = 8; // whose angles are held at a time

} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Units are (some tokens, head), tokens first: their angles are computed once, and a head's rows
/// of them lie together.
template <typename T>
void rope_units(const Call& call, const cpu::Rope& rope, Range units) {
  const Shape& shape = call.in[0].shape();
  const int64_t tokens = shape[2];
  const int64_t heads = shape[0] * shape[1];
  const int32_t* offsets = call.in[1].as<int32_t>();
  const bool own_offsets = call.in[1].shape().size() > 1;
  Rotation rotations[rope_tokens];
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t first = unit / heads * rope_tokens;
    const int64_t head = unit % heads;
    const int64_t offset = offsets[own_offsets ? head / shape[1] : 0];
    for (int64_t t = first; t < std::min(tokens, first + rope_tokens); ++t) {
      auto& rotation = rotations[t - first];
      turn_to<T>(rotation, offset + t, rope, call.in[2].as<float>());
      const int64_t at = (head * tokens + t) * shape[3];
      rotate_row(
          rotation,
          rope,
          call.in[0].as<T>() + at,
          static_cast<size_t>(shape[3]),
          call.out[0].as<T>() + at);
    }
  }
}

void rope_kernel(const Call& call, const cpu::Rope& rope, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return rope_units<hwy::float16_t>(call, rope, units);
    case Dtype::bf16:
      return rope_units<hwy::bfloat16_t>(call, rope, units);
    default:
      return rope_units<float>(call, rope, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rope.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/rope.h"

namespace zmlx {

HWY_EXPORT(rope_kernel);

cpu::Rope rope_settings(const Attrs& attrs) {
  return {
      attrs.integer("dims"),
      attrs.integer("traditional", 0) != 0,
      static_cast<float>(attrs.real("scale", 1)),
      attrs.integer("exact", 0) != 0};
}

void expect_rope(const char* op, const Type& inv_freq, int64_t dims, int64_t width) {
  if (dims <= 0 || dims % 2 != 0 || dims > width) {
    fail(op, "dims must be even and lie between 2 and ", width, " but got ", dims, ".");
  }
  expect_dtype(op, "inv_freq", inv_freq, Dtype::f32);
  expect_shape(op, "inv_freq", inv_freq, {dims / 2});
}

mx::array rotated_reference(
    const mx::array& x,
    const mx::array& cosine,
    const mx::array& sine,
    bool traditional) {
  const int dims = 2 * cosine.shape(-1);
  const auto last = x.ndim() - 1;
  const auto& end = x.shape();
  auto rotated = end;
  rotated[last] = dims;
  mx::Shape first(x.ndim(), 0);
  auto second = first;
  second[last] = traditional ? 1 : dims / 2;
  mx::Shape strides(x.ndim(), 1);
  strides[last] = traditional ? 2 : 1;
  auto first_end = rotated;
  first_end[last] = traditional ? dims : dims / 2;

  auto a = mx::slice(x, first, first_end, strides);
  auto b = mx::slice(x, second, rotated, strides);
  auto c = a * cosine - b * sine;
  auto d = a * sine + b * cosine;
  Arrays parts = {c, d};
  if (traditional) {
    parts = {mx::reshape(
        mx::concatenate({mx::expand_dims(c, -1), mx::expand_dims(d, -1)}, -1), rotated)};
  }
  if (dims < x.shape(-1)) {
    auto rest = first;
    rest[last] = dims;
    parts.push_back(mx::slice(x, rest, end));
  }
  return mx::concatenate(parts, -1);
}

mx::array rope_reference(
    const mx::array& x,
    const mx::array& offset,
    const mx::array& inv_freq,
    const cpu::Rope& rope) {
  auto first_position =
      mx::reshape(offset, offset.size() == 1 ? mx::Shape{} : mx::Shape{x.shape(0), 1, 1});
  auto position =
      (mx::arange(x.shape(2), mx::float32) + first_position) * mx::array(rope.scale, mx::float32);
  auto angle = mx::expand_dims(position, -1) * inv_freq;
  auto cosine = mx::astype(mx::cos(angle), x.dtype());
  auto sine = mx::astype(mx::sin(angle), x.dtype());
  return rotated_reference(x, cosine, sine, rope.traditional);
}

namespace {

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs("rope", in, 3);
  expect_rank("rope", "x", in[0], 4);
  expect_floating("rope", "x", in[0]);
  if (in[1].shape == Shape{in[0].shape[0]}) {
    expect_dtype("rope", "offset", in[1], Dtype::i32);
  } else {
    expect_offset("rope", in[1]);
  }
  expect_rope("rope", in[2], attrs.integer("dims"), in[0].shape[-1]);
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  return {rope_reference(in[0], in[1], in[2], rope_settings(attrs))};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  auto rope = rope_settings(attrs);
  if (rope.dims > cpu::max_rope_dims) {
    return {};
  }
  return {[rope](const Call& call, Member& member) {
    const Shape& x = call.in[0].shape();
    const int64_t blocks = (x[2] + rope_tokens - 1) / rope_tokens;
    HWY_DYNAMIC_DISPATCH(rope_kernel)(call, rope, member.split(blocks * x[0] * x[1]));
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  return cuda::rope(in[0].dtype, in[0].shape, in[1].shape.rank() == 1, rope_settings(attrs));
}

Case example(std::string name, mx::Shape shape, int offset, int dims, Attrs attrs) {
  attrs.set("dims", int64_t{dims});
  return {
      std::move(name),
      [=](mx::Dtype dtype) {
        auto inv_freq =
            mx::exp(mx::arange(0, -dims / 2, -1, mx::float32) * (27.6f / static_cast<float>(dims)));
        return Arrays{random_case(shape, dtype, 1), mx::array(offset), inv_freq};
      },
      attrs};
}

Case with_own_offsets(Case of, std::vector<int> offsets) {
  of.inputs = [inputs = of.inputs, offsets](mx::Dtype dtype) {
    auto in = inputs(dtype);
    in[1] = mx::array(offsets.data(), {static_cast<int>(offsets.size())}, mx::int32);
    return in;
  };
  return of;
}

} // namespace

ZMLX_OP(rope)
    .args({"x", "offset", "inv_freq"})
    .doc(
        "x [B, H, T, D] with its first `dims` elements rotated in pairs (i, i + dims / 2), or (2i, "
        "2i + 1) when traditional=1, by the angle (offset + t) * scale * inv_freq[i] (Su et al., "
        "2021). offset: one int32, or [B] for sequences that begin at different "
        "positions; inv_freq: float32 [dims / 2]. exact=1 also rounds cosines, "
        "sines and products to x's dtype.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("decode", {1, 8, 1, 128}, 1000, 128, {}),
        example("prompt", {2, 3, 37, 64}, 5, 64, {}),
        example("part", {1, 2, 5, 80}, 3, 34, {{"scale", 0.25}}),
        example("traditional", {1, 2, 33, 64}, 7, 64, {{"traditional", int64_t{1}}}),
        example("traditional part", {1, 2, 3, 50}, 0, 46, {{"traditional", int64_t{1}}}),
        example("exact", {1, 2, 31, 64}, 7, 64, {{"exact", int64_t{1}}}),
        example("smallest", {1, 1, 1, 2}, 1, 2, {}),
        example("empty", {1, 2, 0, 8}, 1, 8, {}),
        with_own_offsets(example("own offsets", {3, 2, 5, 64}, 0, 64, {}), {7, -1, 0}),
        with_own_offsets(example("own offsets decode", {2, 3, 1, 32}, 0, 32, {}), {9, 200}),
    });

} // namespace zmlx
#endif
