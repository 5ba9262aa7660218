// zmlx/ops/rms_norm.cpp: each row divided by its root mean square, times a weight.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/rms_norm.cpp"
#include <algorithm>
#include <cmath>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/stream-inl.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

template <typename T>
HWY_FLATTEN void rms_norm_rows(const Call& call, float eps, bool past_cache, Range rows) {
  const int64_t n = call.in[0].shape()[-1];
  const T* weight = call.in.size() > 1 ? call.in[1].as<T>() : nullptr;
  const int64_t ahead = cpu::row_ahead(n, sizeof(T));
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* x = call.in[0].as<T>() + row * n;
    auto fetch = [&](int64_t i) HWY_ATTR { fetch_two(x + i + ahead); };
    auto inverse = hn::Set(F32(), inverse_rms(x, static_cast<size_t>(n), eps));
    auto normal = [&](Floats v) HWY_ATTR { return round_result<T>(hn::Mul(v, inverse)); };
    auto weighted = [&](Floats v, Floats w) HWY_ATTR { return hn::Mul(normal(v), w); };
    written(call.out[0].as<T>() + row * n, n, past_cache, [&](T* to) HWY_ATTR {
      if (weight) {
        map_row(n, to, fetch, weighted, x, weight);
      } else {
        map_row(n, to, fetch, normal, x);
      }
    });
  }
  if (past_cache) {
    hwy::FlushStream();
  }
}

void rms_norm_kernel(const Call& call, float eps, bool past_cache, Range rows) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return rms_norm_rows<hwy::float16_t>(call, eps, past_cache, rows);
    case Dtype::bf16:
      return rms_norm_rows<hwy::bfloat16_t>(call, eps, past_cache, rows);
    default:
      return rms_norm_rows<float>(call, eps, past_cache, rows);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/fast.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/formula.h"
#include "zmlx/ops/norms.h"

namespace zmlx {

HWY_EXPORT(rms_norm_kernel);

namespace {

Types types(const Types& in, const Attrs&) {
  if (in.empty() || in.size() > 2) {
    fail("rms_norm", "expected 1 or 2 inputs but got ", in.size(), ".");
  }
  expect_floating("rms_norm", "x", in[0]);
  if (in[0].shape.rank() == 0) {
    fail("rms_norm", "x must have at least 1 axis but got a number.");
  }
  if (in.size() > 1) {
    expect_dtype("rms_norm", "weight", in[1], in[0].dtype);
    expect_shape("rms_norm", "weight", in[1], {in[0].shape[-1]});
  }
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto weight = in.size() > 1 ? std::optional(in[1]) : std::nullopt;
  return {mx::fast::rms_norm(in[0], weight, static_cast<float>(attrs.real("eps")))};
}

Arrays gradient(const Gradient& of) {
  return norm_gradient(of, {false, 1}, of.inputs[0], of.cotangents[0]);
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  auto eps = static_cast<float>(attrs.real("eps"));
  return {[eps](const Call& call, Member& member) {
    const Type& x = call.in[0].type;
    const int64_t width = x.shape[-1] * static_cast<int64_t>(size_of(x.dtype));
    const bool past_cache = cpu::past_cache(call.out[0], width);
    cpu::over_rows(member, x.shape.rows(), width, [&](Range rows) {
      HWY_DYNAMIC_DISPATCH(rms_norm_kernel)(call, eps, past_cache, rows);
    });
  }};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device& device) {
  const Shape& x = in[0].shape;
  // A block a row is soonest done with a few; the formula's kernel has a warp a row.
  if (x.size() == 0 || in.size() == 1 || x.rows() > device.multiprocessors) {
    return {};
  }
  cuda::Launch launch;
  launch.source = "rows.cuh";
  launch.kernel = "rms_norm<" + cuda::text_of(in[0].dtype) + ">";
  launch.grid[0] = static_cast<uint32_t>(x.rows());
  const auto pack = static_cast<int64_t>(16 / size_of(in[0].dtype)); // elements of a thread
  launch.block[0] =
      static_cast<uint32_t>(std::clamp<int64_t>((x[-1] + 32 * pack - 1) / (32 * pack), 1, 8) * 32);
  launch.arguments = {
      cuda::in(0), cuda::in(1), cuda::out(0), cuda::f32(attrs.real("eps")), cuda::i32(x[-1])};
  return {{launch}, 0};
}

Formula formula(const Types& in, const Attrs& attrs) {
  // Rounded to x's dtype before the weight, as mx.fast.rms_norm does.
  std::string normal = "x * rsqrt(row_mean(x * x) + eps)";
  if (in[0].dtype != Dtype::f32) {
    normal = std::string(name_of(in[0].dtype)) + "(" + normal + ")";
  }
  return {
      in.size() > 1 ? normal + " * weight" : normal,
      {{"x", 0}, {"weight", 1}},
      {{"eps", attrs.real("eps")}}};
}

Case example(std::string name, mx::Shape shape, bool weight = true, double eps = 1e-6) {
  return {
      std::move(name),
      [shape, weight](mx::Dtype dtype) {
        Arrays in{random_case(shape, dtype, 1)};
        if (weight) {
          in.push_back(random_case({shape.back()}, dtype, 2));
        }
        return in;
      },
      {{"eps", eps}}};
}

} // namespace

ZMLX_OP(rms_norm)
    .args({"x", "*weight"})
    .doc(
        "x [.., D] times rsqrt(mean(x^2, -1) + eps), rounded to x's dtype, times weight [D] if given. "
        "The mean is taken in float32, as in mx.fast.rms_norm (Zhang and Sennrich, 2019). eps: number.")
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cpu(kernel)
    .cuda(FormulaKernel{"rms_norm", formula, cuda_kernel})
    .cases({
        example("decode", {1, 1, 2048}),
        example("prompt", {2, 37, 128}),
        example("one", {5, 1}, true, 0.5),
        example("tail", {3, 31}),
        example("even", {2, 32}),
        example("over", {1, 33}),
        example("no weight", {5, 67}, false),
        example("empty", {0, 7}),
    });

} // namespace zmlx
#endif
