// zmlx/ops/gated_rms_norm.cpp: each row divided by its root mean square, times a weight, times
// silu of a gate.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/gated_rms_norm.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

template <typename T>
void gated_rms_norm_rows(const Call& call, float eps, Range rows) {
  const int64_t n = call.in[0].shape()[-1];
  const T* weight = call.in[2].as<T>();
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = call.in[0].as<T>() + row * n;
    const T* gate = call.in[1].as<T>() + row * n;
    T* out = call.out[0].as<T>() + row * n;
    const Floats inverse = hn::Set(F32(), inverse_rms(x, static_cast<size_t>(n), eps));
    for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
      const size_t left = static_cast<size_t>(n - i);
      const Floats z = load_some(gate + i, left);
      const Floats normal =
          hn::Mul(hn::Mul(load_some(x + i, left), inverse), load_some(weight + i, left));
      store_some(hn::Mul(normal, hn::Mul(z, sigmoid(z))), out + i, left);
    }
  }
}

void gated_rms_norm_kernel(const Call& call, float eps, Range rows) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return gated_rms_norm_rows<hwy::float16_t>(call, eps, rows);
    case Dtype::bf16:
      return gated_rms_norm_rows<hwy::bfloat16_t>(call, eps, rows);
    default:
      return gated_rms_norm_rows<float>(call, eps, rows);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {

HWY_EXPORT(gated_rms_norm_kernel);

namespace {

constexpr const char* name = "gated_rms_norm";

float eps_of(const Attrs& attrs) {
  return static_cast<float>(attrs.real("eps", 1e-6));
}

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 3);
  expect_rows(name, in[0], 1);
  expect_dtype(name, "gate", in[1], in[0].dtype);
  expect_shape(name, "gate", in[1], in[0].shape);
  expect_dtype(name, "weight", in[2], in[0].dtype);
  expect_shape(name, "weight", in[2], {in[0].shape[-1]});
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto wide = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  auto z = wide(in[1]);
  auto y = mx::fast::rms_norm(wide(in[0]), wide(in[2]), eps_of(attrs));
  return {mx::astype(y * (z * mx::sigmoid(z)), in[0].dtype())};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[eps = eps_of(attrs)](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(gated_rms_norm_kernel)(call, eps, member.split(call.in[0].shape().rows()));
  }};
}

Formula formula(const Types&, const Attrs& attrs) {
  return {
      "x * rsqrt(row_mean(x * x) + eps) * weight * silu(gate)",
      {{"x", 0}, {"gate", 1}, {"weight", 2}},
      {{"eps", attrs.real("eps", 1e-6)}}};
}

Case example(std::string label, mx::Shape shape) {
  return {
      std::move(label),
      [shape](mx::Dtype dtype) {
        return Arrays{
            random_case(shape, dtype, 1, 3),
            random_case(shape, dtype, 2, 2),
            random_case({shape.back()}, dtype, 3)};
      },
      {{"eps", 1e-6}}};
}

} // namespace

ZMLX_OP(gated_rms_norm)
    .args({"x", "gate", "weight"})
    .doc(
        "x [.., N] times rsqrt(mean(x^2) + eps), times weight [N], times silu(gate [.., N]); computed "
        "in float32 and rounded once, as the gated norm of Qwen3-Next.")
    .function({{"eps", "added to the mean of squares", 1e-6}})
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(FormulaKernel{name, formula})
    .cases({
        example("decode", {1, 1, 32, 128}),
        example("prompt", {2, 37, 64}),
        example("one", {5, 1}),
        example("tail", {3, 31}),
        example("even", {2, 32}),
        example("over", {1, 33}),
        example("empty", {0, 7}),
    });

} // namespace zmlx
#endif
