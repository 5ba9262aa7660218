// zmlx/ops/moe_router.cpp: which experts a token goes to: norm, router matmul, softmax and top-k in
// one pass.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/moe_router.cpp"
#include <cmath>
#include <limits>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_MOE_ROUTER_CPP_
#define ZMLX_OPS_MOE_ROUTER_CPP_
namespace zmlx {
namespace {

/// The most experts that the kernel chooses for a token.
constexpr int64_t max_chosen = 64;
/// Experts are padded to whole vectors of any instruction set.
constexpr int64_t expert_padding = 16;

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Logits [experts] to the indices and weights of the k largest, largest first; among equals the
/// lower index first. NaN counts as the smallest. The logits, padded to whole vectors, are
/// overwritten.
template <typename T>
void choose_row(
    float* logits,
    size_t experts,
    size_t k,
    bool normalize,
    bool exact,
    uint32_t* indices,
    T* weights) {
  const F32 d;
  const Floats lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  const size_t step = lanes();
  const size_t padded = (experts + step - 1) / step * step;
  std::fill(logits + experts, logits + padded, -std::numeric_limits<float>::infinity());
  // The logits are a linear layer's result, and the softmax an array of its own: both rounded.
  Floats high = lowest;
  for (size_t i = 0; i < padded; i += step) {
    auto x = round_to<T>(load(logits + i));
    store(x, logits + i);
    high = hn::Max(high, x);
  }
  high = hn::MaxOfLanes(d, high);
  Floats sums = hn::Zero(d);
  for (size_t i = 0; i < padded; i += step) {
    auto e = exp(hn::Sub(load(logits + i), high));
    store(e, logits + i);
    sums = hn::Add(sums, e);
  }
  const Floats total = hn::Set(d, sum(sums));
  for (size_t i = 0; i < padded; i += step) {
    store(round_to<T>(hn::Div(load(logits + i), total)), logits + i);
  }
  std::fill(logits + experts, logits + padded, -std::numeric_limits<float>::infinity());

  // Keys order the experts: NaN below every weight, a chosen expert below that.
  const Floats not_a_number = hn::Set(d, -1.0f);
  float chosen[max_chosen];
  for (size_t n = 0; n < k; ++n) {
    Floats most = lowest;
    for (size_t i = 0; i < padded; i += step) {
      const auto x = load(logits + i);
      most = hn::Max(most, hn::IfThenElse(hn::IsNaN(x), not_a_number, x));
    }
    const float value = hn::GetLane(hn::MaxOfLanes(d, most));
    size_t best = 0;
    while (value < 0 ? !std::isnan(logits[best]) : logits[best] != value) {
      ++best;
    }
    indices[n] = static_cast<uint32_t>(best);
    chosen[n] = logits[best];
    logits[best] = -std::numeric_limits<float>::infinity();
  }
  float divisor = 1;
  if (normalize) {
    divisor = 0;
    for (size_t n = 0; n < k; ++n) {
      divisor += chosen[n];
    }
    if (exact) {
      divisor = round_to<T>(divisor);
    }
  }
  for (size_t n = 0; n < k; ++n) {
    store_n(hn::Set(d, chosen[n] / divisor), weights + n, 1);
  }
}

void choose_kernel(
    Dtype dtype,
    float* logits,
    size_t experts,
    size_t k,
    bool normalize,
    bool exact,
    uint32_t* indices,
    void* weights) {
  switch (dtype) {
    case Dtype::f16:
      return choose_row(
          logits, experts, k, normalize, exact, indices, static_cast<hwy::float16_t*>(weights));
    case Dtype::bf16:
      return choose_row(
          logits, experts, k, normalize, exact, indices, static_cast<hwy::bfloat16_t*>(weights));
    default:
      return choose_row(
          logits, experts, k, normalize, exact, indices, static_cast<float*>(weights));
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cuda/moe.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/weight.h"

namespace zmlx {

HWY_EXPORT(choose_kernel);

namespace {

constexpr const char* name = "moe_router";

struct Router {
  int64_t k;
  bool normalize;
  WeightKind kind;
  bool norm;
  float eps;
  bool exact;
};

Router settings(const Attrs& attrs) {
  Router op{};
  op.k = attrs.integer("k");
  op.normalize = attrs.integer("normalize", 0) != 0;
  op.kind = weight_kind(name, attrs);
  op.norm = attrs.integer("norm", 0) != 0;
  op.eps = static_cast<float>(attrs.real("eps", 0));
  op.exact = attrs.integer("exact", 0) != 0;
  return op;
}

size_t router_at(const Router& op) {
  return op.norm ? 2 : 1;
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  const size_t w = router_at(op);
  expect_inputs(name, in, w + op.kind.inputs());
  auto& x = in[0];
  expect_floating(name, "x", x);
  if (x.shape.rank() == 0) {
    fail(name, "x must have at least 1 axis but got a number.");
  }
  const int64_t width = x.shape[-1];
  if (op.norm) {
    expect_dtype(name, "norm_weight", in[1], x.dtype);
    expect_shape(name, "norm_weight", in[1], {width});
  }
  const Shape router = expect_weight(name, "router", in, w, op.kind, x.dtype, 2);
  const int64_t experts = router[0];
  if (router[1] != width) {
    fail(
        name,
        "router must have x's last axis, ",
        width,
        ", for its own but is ",
        to_string(router),
        ".");
  }
  if (op.k < 1 || op.k > experts) {
    fail(name, "k must lie between 1 and ", experts, " experts but got ", op.k, ".");
  }
  Type indices = x;
  indices.shape[-1] = op.k;
  Type weights = indices;
  indices.dtype = Dtype::u32;
  return op.norm ? Types{x, indices, weights} : Types{indices, weights};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  const size_t w = router_at(op);
  auto x = op.norm ? mx::fast::rms_norm(in[0], in[1], op.eps) : in[0];
  auto logits = weight_matmul(x, in, w, op.kind);
  auto gates = mx::softmax(logits, -1, true);
  const int experts = gates.shape(-1);
  const int k = static_cast<int>(op.k);
  // Stopped before, not after: mx::vjp takes no cotangent for an output that is a stop_gradient.
  auto order = mx::argpartition(mx::stop_gradient(gates), experts - k, -1);
  mx::Shape start(order.ndim(), 0);
  start.back() = experts - k;
  auto indices = mx::slice(order, start, order.shape());
  auto weights = mx::take_along_axis(gates, indices, -1);
  if (op.normalize) {
    weights = weights / mx::sum(weights, -1, true);
  }
  return op.norm ? Arrays{x, indices, weights} : Arrays{indices, weights};
}

int64_t padded(int64_t experts) {
  return (experts + expert_padding - 1) / expert_padding * expert_padding;
}

void run(const Router& op, const cpu::Matmul& matmul, const Call& call, Member& member) {
  const size_t w = router_at(op);
  const Tensor& x = call.in[0];
  const int64_t count = x.shape().rows();
  const int64_t experts = call.in[w].shape()[0];
  const auto weight = weight_at(call, w, op.kind);
  cpu::LocalRows local;
  auto rows = cpu::prepare_rows(
      matmul,
      x.data,
      count,
      {op.norm ? call.in[1].data : nullptr, op.eps},
      call.scratch,
      local,
      member,
      op.norm ? call.out[0].data : nullptr);
  auto* logits = reinterpret_cast<float*>(call.scratch + cpu::prepare_scratch(matmul, count));
  const int64_t stride = padded(experts);
  cpu::for_blocks(
      matmul,
      weight,
      experts,
      rows,
      member,
      [&](Range outputs, int64_t first, int64_t n, const float* block, int64_t ld) {
        for (int64_t i = 0; i < n; ++i) {
          const float* from = block + i * ld;
          std::copy(
              from,
              from + (outputs.end - outputs.begin),
              logits + (first + i) * stride + outputs.begin);
        }
      });
  member.barrier();
  const Tensor& indices = call.out[op.norm ? 1 : 0];
  const Tensor& weights = call.out[op.norm ? 2 : 1];
  const auto step = op.k * static_cast<int64_t>(size_of(x.dtype()));
  const Range mine = member.split(count);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    HWY_DYNAMIC_DISPATCH(choose_kernel)
    (x.dtype(),
     logits + i * stride,
     static_cast<size_t>(experts),
     static_cast<size_t>(op.k),
     op.normalize,
     op.exact,
     indices.as<uint32_t>() + i * op.k,
     weights.as<std::byte>() + i * step);
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  const Shape& x = in[0].shape;
  if (op.k > max_chosen || !cpu::Matmul::supports(in[0].dtype, op.kind.format, x[-1])) {
    return {};
  }
  cpu::Matmul matmul(in[0].dtype, op.kind.format, x[-1], cpu::Activations::exact, x.rows());
  const int64_t experts = in[router_at(op)].shape[0];
  const size_t logits = static_cast<size_t>(x.rows() * padded(experts)) * sizeof(float);
  return {
      [op, matmul](const Call& call, Member& member) { run(op, matmul, call, member); },
      cpu::prepare_scratch(matmul, x.rows()) + logits};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const Shape& x = in[0].shape;
  const auto at = static_cast<int>(router_at(op));
  const int64_t experts = in[router_at(op)].shape[0];
  if (x.size() == 0 || experts > cuda::Choice::max_experts) {
    return {};
  }
  cuda::Linear linear{in[0].dtype, op.kind.format, x.rows(), x[-1], cuda::in(0)};
  linear.has_norm = op.norm;
  linear.norm = cuda::in(1);
  linear.eps = op.eps;
  linear.has_normal = op.norm;
  linear.normal = cuda::out(0);
  linear.outputs = {cuda::linear_output(op.kind.format, at, cuda::scratch(), experts)};
  cuda::Choice choice{
      in[0].dtype,
      x.rows(),
      experts,
      op.k,
      cuda::scratch(),
      cuda::out(op.norm ? 1 : 0),
      cuda::out(op.norm ? 2 : 1),
      op.normalize,
      op.exact};
  cuda::Kernel kernel;
  kernel.scratch = static_cast<size_t>(x.rows() * experts) * size_of(in[0].dtype);
  cuda::push_router(kernel, linear, choice, device);
  return kernel;
}

Case example(std::string label, mx::Shape shape, int experts, int64_t k, Attrs weight, bool norm) {
  Attrs attrs = weight.set("k", k)
                    .set("normalize", int64_t{norm})
                    .set("norm", int64_t{norm})
                    .set("eps", 1e-6);
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in = {random_case(shape, dtype, 1)};
        if (norm) {
          in.push_back(random_case({shape.back()}, dtype, 2, 0.5f));
        }
        // Logits of about 1: rounding them to a short dtype then moves weights by less than that.
        push_random_weight(in, {experts, shape.back()}, weight_kind(name, attrs), dtype, 3);
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(moe_router)
    .args({"x", "*rest"})
    .doc(
        "The experts of each token of x [.., D]: softmax over the logits x router^T (router [E, D], "
        "mode none or quantised with group_size and bits), then the k largest, largest first, lower "
        "index first among equals; NaN counts as smallest. Gives indices uint32 [.., k] and weights "
        "[.., k] in x's dtype, divided by their sum when normalize=1. norm=1: x is RMS-normalised "
        "first (input norm_weight [D], eps), and the normalised x is the first output. Inputs: x, "
        "[norm_weight], router (codes, scales, biases, or what else the mode has). exact=1 also rounds the sum.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("decode", {1, 1, 2048}, 128, 8, weight_attrs(8, 64), true),
        example("decode 4 bit", {1, 1, 1024}, 64, 8, weight_attrs(4, 64), true),
        example("prompt", {1, 37, 256}, 33, 5, weight_attrs(8, 64), true),
        example("no norm", {3, 64}, 31, 2, weight_attrs(4, 64), false),
        example("mxfp8", {1, 1, 256}, 32, 4, weight_attrs("mxfp8"), true),
        example("dense", {2, 3, 96}, 32, 4, weight_attrs(0, 0), true),
        example("all", {5, 33}, 7, 7, weight_attrs(0, 0), false),
        example("one", {1, 32}, 1, 1, weight_attrs(0, 0), false),
        example("empty", {0, 64}, 16, 2, weight_attrs(8, 64), true),
    });

} // namespace zmlx
#endif
