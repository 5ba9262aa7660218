// zmlx/ops/dequantise.cpp: a quantised weight in any of MLX's formats as plain values, activated on
// the way.
#include <optional>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/ops/activations.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/floating.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

constexpr const char* name = "dequantise";
constexpr int64_t piece = 2048; // elements that one step decodes: whole groups of every format

WeightKind kind_of(const Attrs& attrs) {
  auto kind = weight_kind(name, attrs);
  if (kind.format.bits == 0) {
    fail(name, "mode must be affine, mxfp4, mxfp8 or nvfp4 but got none.");
  }
  return kind;
}

const ActivationRow* activation_of(const Attrs& attrs) {
  const std::string asked = attrs.has("activation") ? attrs.text("activation") : "none";
  return asked == "none" ? nullptr : &activation_named(name, asked);
}

const FloatingType& asked_dtype(const Attrs& attrs) {
  return floating_named(name, attrs.has("dtype") ? attrs.text("dtype") : "bfloat16");
}

Types types(const Types& in, const Attrs& attrs) {
  const auto kind = kind_of(attrs);
  activation_of(attrs);
  Dtype dtype = asked_dtype(attrs).dtype;
  expect_inputs(name, in, kind.inputs());
  if (in[0].shape.rank() == 0) {
    fail(name, "w must have at least 1 axis but got a number.");
  }
  if (kind.has_dtype()) {
    expect_floating(name, "w scales", in[1]);
    dtype = in[1].dtype;
  }
  return {{dtype, expect_weight(name, "w", in, 0, kind, dtype, in[0].shape.rank())}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const auto kind = kind_of(attrs);
  auto& f = kind.format;
  const auto dtype = kind.has_dtype() ? in[1].dtype() : asked_dtype(attrs).mlx;
  if (in[0].size() == 0) { // which MLX does not dequantise
    auto shape = in[1].shape();
    shape.back() *= f.group_size;
    return {mx::zeros(shape, dtype)};
  }
  auto* activation = activation_of(attrs);
  auto biases = f.has_biases() ? std::optional(in[2]) : std::nullopt;
  if (!activation) {
    return {
        mx::dequantize(in[0], in[1], biases, f.group_size, f.bits, kind.mode, std::nullopt, dtype)};
  }
  // In float32, so that values are rounded once.
  auto scales = kind.has_dtype() ? mx::astype(in[1], mx::float32) : in[1];
  biases = biases ? std::optional(mx::astype(*biases, mx::float32)) : biases;
  auto values = mx::dequantize(
      in[0], scales, biases, f.group_size, f.bits, kind.mode, std::nullopt, mx::float32);
  return {mx::astype(activation->reference(values, activation->parameter_of()), dtype)};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[kind = kind_of(attrs), activation = activation_of(attrs)](
              const Call& call, Member& member) {
    const Tensor& out = call.out[0];
    const cpu::Weight weight = weight_at(call, 0, kind);
    const auto size = static_cast<int64_t>(size_of(out.dtype()));
    const Range part = member.split(out.shape().size(), piece);
    alignas(64) float values[piece];
    for (int64_t i = part.begin; i < part.end; i += piece) {
      const int64_t count = std::min(piece, part.end - i);
      cpu::dequantise(out.dtype(), kind.format, weight, i, count, values);
      if (activation) {
        const float parameter = activation->parameter_of();
        cpu::activate(activation->kernel, Dtype::f32, nullptr, values, count, values, parameter);
      }
      cpu::store_row(out.dtype(), values, out.as<std::byte>() + i * size, count);
    }
  }};
}

Case example(std::string label, mx::Shape shape, Attrs attrs, const char* activation = "none") {
  attrs.set("activation", std::string(activation));
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in;
        push_random_weight(in, shape, weight_kind(name, attrs), dtype, 2);
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(dequantise)
    .args({"w", "scales", "*biases"})
    .doc(
        "The values of a weight as mx.quantize packs it: codes w [.., words] (uint32), scales [.., N / "
        "group_size], biases alike in mode affine, to [.., N]: code * scale + bias for affine (bits 2, "
        "3, 4, 5, 6, 8; group_size 32, 64, 128), code * scale for mxfp4, mxfp8 and nvfp4, of type "
        "dtype. activation: none, or an activation's name, applied before values are rounded.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cases({
        example("affine 4", {37, 512}, weight_attrs(4, 64)),
        example("affine 2", {3, 3, 96}, weight_attrs(2, 32)),
        example("affine 3", {31, 128}, weight_attrs(3, 128)),
        example("affine 5", {33, 64}, weight_attrs(5, 64)),
        example("affine 6, silu", {5, 2112}, weight_attrs(6, 32), "silu"),
        example("affine 8, gelu", {2, 256}, weight_attrs(8, 64), "gelu"),
        example("one row", {1, 64}, weight_attrs(3, 32)),
        example("mxfp4", {3, 96}, weight_attrs("mxfp4")),
        example("mxfp8", {2, 2080}, weight_attrs("mxfp8")),
        example("nvfp4", {6, 48}, weight_attrs("nvfp4")),
        example("empty", {0, 64}, weight_attrs(4, 64)),
    });

} // namespace zmlx
