// zmlx/ops/adamw_step.cpp: one step of the AdamW optimiser, parameters and moments in one pass.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/adamw_step.cpp"
#include <cmath>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_ADAMW_STEP_CPP_
#define ZMLX_OPS_ADAMW_STEP_CPP_
namespace zmlx {
namespace {

struct Adamw {
  double beta1;
  double beta2;
  float eps;
  float weight_decay;
  bool bias_correction;

  float rest1() const {
    return static_cast<float>(1 - beta1);
  }
  float rest2() const {
    return static_cast<float>(1 - beta2);
  }
};

/// 1 - beta^step = -expm1(step * this), without cancellation.
float logarithm(double beta) {
  return static_cast<float>(std::log(beta));
}

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

template <typename P, typename G>
void adamw_part(const Call& call, const Adamw& op, Range part) {
  const F32 d;
  const float lr = *call.in[4].as<float>();
  const float step = *call.in[5].as<float>();
  auto corrected = [&](double beta) {
    return op.bias_correction ? -std::expm1(step * logarithm(beta)) : 1.0f;
  };
  const float rate = lr / corrected(op.beta1);
  const float spread = 1 / std::sqrt(corrected(op.beta2));
  const auto beta1 = hn::Set(d, static_cast<float>(op.beta1));
  const auto beta2 = hn::Set(d, static_cast<float>(op.beta2));
  const auto rest1 = hn::Set(d, op.rest1());
  const auto rest2 = hn::Set(d, op.rest2());
  const auto kept = hn::Set(d, 1 - lr * op.weight_decay);
  const P* p = call.in[0].as<P>();
  const G* g = call.in[1].as<G>();
  const float* m = call.in[2].as<float>();
  const float* v = call.in[3].as<float>();
  for (int64_t i = part.begin; i < part.end; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(part.end - i);
    const auto slope = load_some(g + i, left);
    const auto mean = hn::MulAdd(beta1, load_some(m + i, left), hn::Mul(rest1, slope));
    const auto square =
        hn::MulAdd(beta2, load_some(v + i, left), hn::Mul(rest2, hn::Mul(slope, slope)));
    const auto size = hn::MulAdd(hn::Sqrt(square), hn::Set(d, spread), hn::Set(d, op.eps));
    const auto move = hn::Div(hn::Mul(hn::Set(d, rate), mean), size);
    store_some(hn::Sub(hn::Mul(load_some(p + i, left), kept), move), call.out[0].as<P>() + i, left);
    store_some(mean, call.out[1].as<float>() + i, left);
    store_some(square, call.out[2].as<float>() + i, left);
  }
}

template <typename P>
void adamw_of(const Call& call, const Adamw& op, Range part) {
  if (call.in[1].dtype() == Dtype::f32) {
    adamw_part<P, float>(call, op, part);
  } else {
    adamw_part<P, P>(call, op, part);
  }
}

void adamw_step_kernel(const Call& call, const Adamw& op, Range part) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return adamw_of<hwy::float16_t>(call, op, part);
    case Dtype::bf16:
      return adamw_of<hwy::bfloat16_t>(call, op, part);
    default:
      return adamw_of<float>(call, op, part);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(adamw_step_kernel);

namespace {

constexpr const char* name = "adamw_step";

Adamw settings(const Attrs& attrs) {
  return {
      attrs.real("beta1"),
      attrs.real("beta2"),
      static_cast<float>(attrs.real("eps")),
      static_cast<float>(attrs.real("weight_decay")),
      attrs.integer("bias_correction", 1) != 0};
}

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 6);
  expect_floating(name, "p", in[0]);
  if (in[1].dtype != Dtype::f32) {
    expect_dtype(name, "g", in[1], in[0].dtype);
  }
  expect_shape(name, "g", in[1], in[0].shape);
  for (auto [label, i] : {std::pair{"m", size_t{2}}, std::pair{"v", size_t{3}}}) {
    expect_dtype(name, label, in[i], Dtype::f32);
    expect_shape(name, label, in[i], in[0].shape);
  }
  for (auto [label, i] : {std::pair{"lr", size_t{4}}, std::pair{"step", size_t{5}}}) {
    expect_dtype(name, label, in[i], Dtype::f32);
    if (in[i].shape.size() != 1) {
      fail(name, label, " must be one number but got shape ", to_string(in[i].shape), ".");
    }
  }
  return {in[0], in[2], in[3]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const auto op = settings(attrs);
  auto number = [](float x) { return mx::array(x); };
  auto p = mx::astype(in[0], mx::float32);
  auto g = mx::astype(in[1], mx::float32);
  auto lr = mx::reshape(in[4], {});
  auto step = mx::reshape(in[5], {});
  auto m = number(static_cast<float>(op.beta1)) * in[2] + number(op.rest1()) * g;
  auto v = number(static_cast<float>(op.beta2)) * in[3] + number(op.rest2()) * mx::square(g);
  auto size = mx::sqrt(v);
  auto rate = lr;
  if (op.bias_correction) {
    auto corrected = [&](double beta) { return -mx::expm1(step * number(logarithm(beta))); };
    rate = lr / corrected(op.beta1);
    size = size * mx::rsqrt(corrected(op.beta2));
  }
  p = p * (number(1) - lr * number(op.weight_decay)) - rate * m / (size + number(op.eps));
  return {mx::astype(p, in[0].dtype()), m, v};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[op = settings(attrs)](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(adamw_step_kernel)
    (call, op, member.split(call.out[0].shape().size(), 64));
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  const auto op = settings(attrs);
  const int64_t n = in[0].shape.size();
  if (!cuda::countable({n})) {
    return {};
  }
  auto launch = cuda::thread_a_unit(
      "adamw.cuh",
      "adamw_step<" + cuda::text_of(in[0].dtype) + ", " + cuda::text_of(in[1].dtype) + ", " +
          cuda::text_of(op.bias_correction) + ">",
      n);
  launch.arguments = {
      cuda::in(1),
      cuda::in(4),
      cuda::in(5),
      cuda::out(0),
      cuda::out(1),
      cuda::out(2),
      cuda::i32(n),
      cuda::f32(op.beta1),
      cuda::f32(op.beta2),
      cuda::f32(op.rest1()),
      cuda::f32(op.rest2()),
      cuda::f32(logarithm(op.beta1)),
      cuda::f32(logarithm(op.beta2)),
      cuda::f32(op.eps),
      cuda::f32(op.weight_decay)};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape shape, int step, bool correction, bool wide = false) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        return Arrays{
            random_case(shape, dtype, 1),
            random_case(shape, wide ? mx::float32 : dtype, 2),
            random_case(shape, mx::float32, 3),
            mx::square(random_case(shape, mx::float32, 4)),
            mx::array(0.01f),
            mx::array(static_cast<float>(step))};
      },
      {{"beta1", 0.9},
       {"beta2", 0.999},
       {"eps", 1e-8},
       {"weight_decay", 0.1},
       {"bias_correction", int64_t{correction}}}};
}

} // namespace

ZMLX_OP(adamw_step)
    .args({"p", "g", "m", "v", "lr", "step"})
    .doc(
        "One step of AdamW (Loshchilov and Hutter, 2019) for parameters p [..], gradients g (of p's "
        "dtype or float32) and moments m and v (float32): m' = beta1 m + (1 - beta1) g, v' = beta2 v "
        "+ (1 - beta2) g^2, p' = p (1 - lr weight_decay) - lr m' / (sqrt(v') + eps), with m' / (1 - "
        "beta1^step) and v' / (1 - beta2^step) there when bias_correction=1. lr and step are one "
        "float32 each. Gives p', m', v', in place when nothing else holds p, m, v.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .in_place(0, 0)
    .in_place(1, 2)
    .in_place(2, 3)
    .cases({
        example("first step", {37, 256}, 1, true),
        example("later", {33}, 1000, true),
        example("no correction", {3, 31}, 7, false),
        example("gradients in float32", {5, 32}, 2, true, true),
        example("one", {}, 3, true),
        example("empty", {0, 8}, 1, true),
    });

} // namespace zmlx
#endif
