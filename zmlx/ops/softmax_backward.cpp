// zmlx/ops/softmax_backward.cpp: the gradient of softmax and of its logarithm, from their results.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/softmax.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

constexpr const char* name = "softmax_backward";

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 3);
  expect_floating(name, "y", in[0]);
  if (in[0].shape.rank() == 0) {
    fail(name, "y must have at least 1 axis but got a number.");
  }
  expect_dtype(name, "dy", in[1], in[0].dtype);
  expect_shape(name, "dy", in[1], in[0].shape);
  expect_dtype(name, "scale", in[2], Dtype::f32);
  if (in[2].shape.size() != 1) {
    fail(name, "scale must be one number but got shape ", to_string(in[2].shape), ".");
  }
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto y = mx::astype(in[0], mx::float32);
  auto dy = mx::astype(in[1], mx::float32);
  auto dx = attrs.integer("logarithm", 0) ? dy - mx::exp(y) * mx::sum(dy, -1, true)
                                          : y * (dy - mx::sum(y * dy, -1, true));
  return {mx::astype(dx * mx::reshape(in[2], mx::Shape{}), in[0].dtype())};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  const bool logarithm = attrs.integer("logarithm", 0) != 0;
  return {[logarithm](const Call& call, Member& member) {
    const Tensor& y = call.in[0];
    const int64_t n = y.shape()[-1];
    const Range part = member.split(y.shape().rows());
    const int64_t at = part.begin * n * static_cast<int64_t>(size_of(y.dtype()));
    cpu::softmax_backward_rows(
        y.dtype(),
        y.as<std::byte>() + at,
        call.in[1].as<std::byte>() + at,
        part.end - part.begin,
        n,
        *call.in[2].as<float>(),
        logarithm,
        call.out[0].as<std::byte>() + at);
  }};
}

Formula formula(const Types&, const Attrs& attrs) {
  return {
      attrs.integer("logarithm", 0) ? "scale * (dy - exp(y) * row_sum(dy))"
                                    : "scale * y * (dy - row_sum(y * dy))",
      {{"y", 0}, {"dy", 1}, {"scale", 2}}};
}

Case example(std::string label, mx::Shape shape, bool logarithm) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto y = mx::softmax(random_case(shape, mx::float32, 1, 2), -1);
        y = shape[0] && logarithm ? mx::log(y) : y;
        return Arrays{
            mx::astype(y, dtype), random_case(shape, dtype, 2), mx::array(0.5f, mx::float32)};
      },
      {{"logarithm", int64_t{logarithm}}}};
}

} // namespace

ZMLX_OP(softmax_backward)
    .args({"y", "dy", "scale"})
    .doc(
        "The cotangent of x for y = softmax(scale * x) along the last axis, y and its cotangent dy "
        "[.., N], scale one float32: scale * y * (dy - sum(y * dy)). logarithm=1: for y = "
        "log_softmax(scale * x), scale * (dy - exp(y) * sum(dy)).")
    .types(types)
    .reference(reference)
    .cuda(FormulaKernel{name, formula})
    .cpu(kernel)
    .cases({
        example("rows", {37, 512}, false),
        example("logarithm", {5, 100}, true),
        example("tail", {3, 31}, false),
        example("over", {2, 2, 33}, true),
        example("one", {5, 1}, false),
        example("empty", {0, 8}, false),
    });

} // namespace zmlx
