// zmlx/ops/glu.cpp: gated linear units: one half of the last axis activated, times the other.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/kernel/cpu/swiglu.h"
#include "zmlx/ops/activations.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

constexpr const char* name = "glu";

const ActivationRow& activation_of(const Attrs& attrs) {
  return activation_named(name, attrs.text("activation"));
}

Types types(const Types& in, const Attrs& attrs) {
  if (in.empty() || in.size() > 2) {
    fail(name, "expected x, or a gate and what it multiplies, but got ", in.size(), " inputs.");
  }
  activation_of(attrs);
  if (in.size() == 2) {
    expect_floating(name, "gate", in[0]);
    expect_dtype(name, "up", in[1], in[0].dtype);
    expect_shape(name, "up", in[1], in[0].shape);
    return {in[0]};
  }
  expect_rows(name, in[0]);
  if (in[0].shape[-1] % 2) {
    fail(name, "x's last axis must be even but got ", to_string(in[0]), ".");
  }
  Type out = in[0];
  out.shape[-1] /= 2;
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto x = mx::astype(in[0], mx::float32);
  auto parts = in.size() == 2 ? Arrays{x, mx::astype(in[1], mx::float32)} : mx::split(x, 2, -1);
  auto& row = activation_of(attrs);
  auto y = row.reference(parts[0], row.parameter_of(attrs)) * parts[1];
  return {mx::astype(y, in[0].dtype())};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto& row = activation_of(attrs);
  const float parameter = row.parameter_of(attrs);
  if (in.size() == 2) {
    return {[what = row.kernel, parameter](const Call& call, Member& member) {
      const Tensor& gate = call.in[0];
      const Range part = member.split(gate.shape().size(), 64);
      const int64_t at = part.begin * static_cast<int64_t>(size_of(gate.dtype()));
      cpu::activate(
          what,
          gate.dtype(),
          gate.as<std::byte>() + at,
          call.in[1].as<std::byte>() + at,
          part.end - part.begin,
          call.out[0].as<std::byte>() + at,
          parameter);
    }};
  }
  return {[what = row.kernel, parameter](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const auto bytes = static_cast<int64_t>(size_of(x.dtype()));
    const int64_t width = call.out[0].shape()[-1] * bytes;
    if (what == cpu::Activation::silu) {
      const int64_t n = width / bytes;
      const bool past_cache = cpu::past_cache(call.out[0], width);
      return cpu::over_rows(member, x.shape().rows(), 2 * width, [&](Range part) {
        const auto* gate = x.as<std::byte>() + 2 * part.begin * width;
        cpu::swiglu_rows(
            x.dtype(),
            gate,
            gate + width,
            part.end - part.begin,
            n,
            2 * n,
            past_cache,
            call.out[0].as<std::byte>() + part.begin * width);
      });
    }
    const Range part = member.split(x.shape().rows());
    for (int64_t r = part.begin; r < part.end; ++r) {
      const auto* gate = x.as<std::byte>() + 2 * r * width;
      cpu::activate(
          what,
          x.dtype(),
          gate,
          gate + width,
          width / bytes,
          call.out[0].as<std::byte>() + r * width,
          parameter);
    }
  }};
}

Formula formula(const Types& in, const Attrs& attrs) {
  auto& row = activation_of(attrs);
  std::vector<FormulaInput> inputs = {{"gate", 0}, {"up", 1}};
  if (in.size() == 1) {
    const int64_t half = in[0].shape[-1] / 2;
    inputs = {{"gate", 0, 0, half}, {"up", 0, half, half}};
  }
  return {row.call("gate") + " * up", inputs, {{"parameter", row.parameter_of(attrs)}}};
}

Case example(std::string label, mx::Shape shape, std::string activation, bool two = false) {
  return {
      std::move(label),
      [shape, two](mx::Dtype dtype) {
        Arrays in{random_case(shape, dtype, 1, 2)};
        if (two) {
          in.push_back(random_case(shape, dtype, 2));
        }
        return in;
      },
      {{"activation", std::move(activation)}}};
}

} // namespace

ZMLX_OP(glu)
    .args({"x", "*up"})
    .doc(
        "activation(x[.., :N]) * x[.., N:] for x [.., 2N], to [.., N], or activation(x) * up for two "
        "arrays of one shape; computed in float32 (Shazeer, 2020): SwiGLU for silu, GeGLU for gelu "
        "and gelu_tanh.")
    .function(
        {{"activation",
          "the name of one of the activations; those with a parameter have its default",
          std::string("silu")}})
    .types(types)
    .reference(reference)
    .cuda(FormulaKernel{name, formula})
    .cpu(kernel)
    .cases({
        example("row", {1, 4096}, "silu"),
        example("gelu", {7, 62}, "gelu"),
        example("tanh form", {7, 64}, "gelu_tanh"),
        example("sigmoid", {2, 3, 66}, "sigmoid"),
        example("two", {5, 2}, "silu"),
        example("gate and up", {37, 100}, "gelu", true),
        example("gate and up, tail", {31}, "elu", true),
        example("empty", {0, 8}, "silu"),
    });

} // namespace zmlx
