// zmlx/ops/glu.cpp: gated linear units: one half of the last axis activated, times the other.
#include "mlx/ops.h"
#include "zmlx/ops/activations.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "glu";

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 1);
  expect_rows(name, in[0]);
  activation_named(name, attrs.text("activation"));
  if (in[0].shape[-1] % 2) {
    fail(name, "x's last axis must be even but got ", to_string(in[0]), ".");
  }
  Type out = in[0];
  out.shape[-1] /= 2;
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto halves = mx::split(mx::astype(in[0], mx::float32), 2, -1);
  auto& row = activation_named(name, attrs.text("activation"));
  return {mx::astype(row.reference(halves[0]) * halves[1], in[0].dtype())};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  auto what = activation_named(name, attrs.text("activation")).kernel;
  return {[what](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const auto bytes = static_cast<int64_t>(size_of(x.dtype()));
    const int64_t width = call.out[0].shape()[-1] * bytes;
    const Range part = member.split(x.shape().rows());
    for (int64_t r = part.begin; r < part.end; ++r) {
      const auto* gate = x.as<std::byte>() + 2 * r * width;
      cpu::activate(
          what,
          x.dtype(),
          gate,
          gate + width,
          width / bytes,
          call.out[0].as<std::byte>() + r * width);
    }
  }};
}

Case example(std::string label, mx::Shape shape, std::string activation) {
  return {
      std::move(label),
      [shape](mx::Dtype dtype) { return Arrays{random_case(shape, dtype, 1, 2)}; },
      {{"activation", std::move(activation)}}};
}

} // namespace

ZMLX_OP(glu)
    .args({"x"})
    .doc(
        "activation(x[.., :N]) * x[.., N:] for x [.., 2N], to [.., N], computed in float32 "
        "(Shazeer, 2020): SwiGLU for silu, GeGLU for gelu and gelu_tanh.")
    .function(
        {{"activation",
          "silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh, softplus or mish",
          std::string("silu")}})
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cases({
        example("row", {1, 4096}, "silu"),
        example("gelu", {7, 62}, "gelu"),
        example("tanh form", {7, 64}, "gelu_tanh"),
        example("sigmoid", {2, 3, 66}, "sigmoid"),
        example("two", {5, 2}, "silu"),
        example("empty", {0, 8}, "silu"),
    });

} // namespace zmlx
