// zmlx/ops/layer_norm.cpp: each row less its mean, over its standard deviation, times a weight,
// plus a bias.
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/ops/formula.h"
#include "zmlx/ops/norms.h"

namespace zmlx {
namespace {

constexpr const char* name = "layer_norm";

Types types(const Types& in, const Attrs&) {
  if (in.empty() || in.size() > 3) {
    fail(name, "expected 1 to 3 inputs but got ", in.size(), ".");
  }
  expect_rows(name, in[0], 1);
  const char* names[] = {"x", "weight", "bias"};
  for (size_t i = 1; i < in.size(); ++i) {
    expect_dtype(name, names[i], in[i], in[0].dtype);
    expect_shape(name, names[i], in[i], {in[0].shape[-1]});
  }
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto given = [&](size_t i) {
    return i < in.size() ? std::optional(mx::astype(in[i], mx::float32)) : std::nullopt;
  };
  auto y = mx::fast::layer_norm(
      mx::astype(in[0], mx::float32),
      given(1),
      given(2),
      static_cast<float>(attrs.real("eps", 1e-5)));
  return {mx::astype(y, in[0].dtype())};
}

Arrays gradient(const Gradient& of) {
  return norm_gradient(of, {true, 1}, of.inputs[0], of.cotangents[0]);
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  const auto eps = static_cast<float>(attrs.real("eps", 1e-5));
  return {[eps](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const int64_t n = x.shape()[-1];
    const Range part = member.split(x.shape().rows());
    const int64_t at = part.begin * n * static_cast<int64_t>(size_of(x.dtype()));
    cpu::layer_norm_rows(
        x.dtype(),
        x.as<std::byte>() + at,
        call.in.size() > 1 ? call.in[1].data : nullptr,
        call.in.size() > 2 ? call.in[2].data : nullptr,
        eps,
        part.end - part.begin,
        n,
        call.out[0].as<std::byte>() + at);
  }};
}

Formula formula(const Types& in, const Attrs& attrs) {
  std::string text = "c = x - row_mean(x); c * rsqrt(row_mean(c * c) + eps)";
  text += in.size() > 1 ? " * weight" : "";
  text += in.size() > 2 ? " + bias" : "";
  return {text, {{"x", 0}, {"weight", 1}, {"bias", 2}}, {{"eps", attrs.real("eps", 1e-5)}}};
}

Case example(std::string label, mx::Shape shape, int inputs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in = {random_case(shape, dtype, 1, 3)};
        for (int i = 1; i < inputs; ++i) {
          in.push_back(random_case({shape.back()}, dtype, 1 + static_cast<uint64_t>(i)));
        }
        return in;
      },
      {{"eps", 1e-5}}};
}

} // namespace

ZMLX_OP(layer_norm)
    .args({"x", "*weight and bias"})
    .doc(
        "(x - mean(x)) / sqrt(var(x) + eps) along the last axis of x [.., N], times weight [N], plus "
        "bias [N] where they are given; computed in float32 (Ba et al., 2016).")
    .function({{"eps", "added to the variance", 1e-5}})
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cuda(FormulaKernel{name, formula})
    .cpu(kernel)
    .cases({
        example("row", {1, 2048}, 3),
        example("plain", {5, 64}, 1),
        example("weight", {3, 31}, 2),
        example("over", {2, 2, 33}, 3),
        example("empty", {0, 8}, 3),
    });

} // namespace zmlx
