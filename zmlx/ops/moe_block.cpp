// zmlx/ops/moe_block.cpp: a whole mixture of experts after attention: norm, router, the chosen
// experts' gated MLPs and the residual. Where few tokens run on a GPU, the experts' launches choose
// for themselves.
#include <algorithm>
#include <array>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/moe.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/experts.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_block";

/// The two ops that it is made of, and which inputs are whose: x, the norm's weight and the router
/// come first, then the experts' and the residual.
struct Block {
  const Op& router;
  const Op& mlp;
  Attrs router_attrs;
  Attrs mlp_attrs;
  WeightKind router_kind;
  WeightKind kind;
  bool residual;

  size_t router_inputs() const {
    return 2 + router_kind.inputs();
  }
  size_t inputs() const {
    return router_inputs() + 3 * kind.inputs() + residual;
  }
  /// The input where gate (0), up (1) or down (2) begins.
  size_t weight(size_t i) const {
    return router_inputs() + i * kind.inputs();
  }

  template <typename T>
  std::vector<T> router_part(const std::vector<T>& in) const {
    return {in.begin(), in.begin() + static_cast<std::ptrdiff_t>(router_inputs())};
  }
  /// `routed`: the router's results, which the experts read before the rest.
  template <typename T>
  std::vector<T> mlp_part(const std::vector<T>& in, std::vector<T> routed) const {
    routed.insert(
        routed.end(), in.begin() + static_cast<std::ptrdiff_t>(router_inputs()), in.end());
    return routed;
  }
};

Block settings(const Attrs& attrs) {
  Attrs router = {{"norm", int64_t{1}}};
  Attrs mlp;
  for (auto& [key, value] : attrs) {
    if (key.starts_with("router_")) {
      router.set(key.substr(7), value);
    } else if (key == "k" || key == "normalize" || key == "eps") {
      router.set(key, value);
    } else {
      mlp.set(key, value);
      if (key == "exact") {
        router.set(key, value);
      }
    }
  }
  auto router_kind = weight_kind(name, router);
  auto kind = product_kind(name, mlp);
  return {
      *find_op("moe_router"),
      *find_op("moe_mlp"),
      std::move(router),
      std::move(mlp),
      std::move(router_kind),
      std::move(kind),
      attrs.integer("residual", 0) != 0};
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.inputs());
  const Types routed = op.router.types(op.router_part(in), op.router_attrs);
  return op.mlp.types(op.mlp_part(in, routed), op.mlp_attrs);
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  const Arrays routed = op.router.reference(op.router_part(in), op.router_attrs);
  return op.mlp.reference(op.mlp_part(in, routed), op.mlp_attrs);
}

size_t aligned(size_t bytes) {
  return (bytes + 63) / 64 * 64;
}

CpuKernel kernel(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  const Types router_in = op.router_part(in);
  const Types routed = op.router.types(router_in, op.router_attrs);
  const CpuKernel router = op.router.cpu(router_in, routed, op.router_attrs);
  const CpuKernel mlp = op.mlp.cpu(op.mlp_part(in, routed), out, op.mlp_attrs);
  if (!router.run || !mlp.run) {
    return {};
  }
  size_t between = 0; // bytes of the router's results
  for (auto& type : routed) {
    between += aligned(type.bytes());
  }
  auto run = [=, router = router.run, mlp = mlp.run, first = op.router_inputs()](
                 const Call& call, Member& member) {
    // The router's results, then the experts' weights and the residual.
    std::array<Tensor, 3 + 3 * 3 + 1> tensors;
    std::byte* at = call.scratch;
    for (size_t i = 0; i < routed.size(); ++i) {
      tensors[i] = {at, routed[i]};
      at += aligned(routed[i].bytes());
    }
    const std::span all(tensors);
    router({call.in.first(first), all.first(routed.size()), at}, member);
    member.barrier();
    const auto rest = call.in.subspan(first);
    std::copy(
        rest.begin(), rest.end(), tensors.begin() + static_cast<std::ptrdiff_t>(routed.size()));
    mlp({all.first(routed.size() + rest.size()), call.out, at}, member);
  };
  return {run, between + std::max(router.scratch, mlp.scratch)};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const Type& x = in[0];
  const int64_t experts = in[2].shape[0];
  const int64_t k = op.router_attrs.integer("k");
  if (x.shape.size() == 0 || experts > cuda::Choice::max_experts ||
      op.kind.activations != cpu::Activations::exact) {
    return {};
  }
  auto at = [&](size_t i) { return static_cast<int>(op.weight(i)); };
  cuda::Kernel kernel;
  auto take = [&](size_t bytes) {
    const size_t offset = kernel.scratch;
    kernel.scratch += (bytes + 255) / 256 * 256;
    return cuda::scratch(offset);
  };
  const int64_t tokens = x.shape.rows();
  const size_t size = size_of(x.dtype);
  const auto normal = take(x.bytes());
  const auto logits = take(static_cast<size_t>(tokens * experts) * size);
  const auto indices = take(static_cast<size_t>(tokens * k) * sizeof(uint32_t));
  const auto weights = take(static_cast<size_t>(tokens * k) * size);
  const bool exact = op.mlp_attrs.integer("exact", 0) != 0;

  cuda::Linear router{x.dtype, op.router_kind.format, tokens, x.shape[-1], cuda::in(0)};
  router.has_norm = router.has_normal = true;
  router.norm = cuda::in(1);
  router.eps = static_cast<float>(op.router_attrs.real("eps"));
  router.normal = normal;
  router.outputs = {cuda::linear_output(op.router_kind.format, 2, logits, experts)};
  const cuda::Choice choice{
      x.dtype,
      tokens,
      experts,
      k,
      logits,
      indices,
      weights,
      op.router_attrs.integer("normalize", 0) != 0,
      exact};
  const Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, x.dtype, 3);
  const cuda::Moe moe{
      x.dtype,
      op.kind.format,
      tokens,
      k,
      experts,
      gate[2],
      gate[1],
      out[0].shape[-1],
      normal,
      indices,
      weights,
      at(0),
      at(1),
      at(2),
      op.residual,
      cuda::in(static_cast<int>(in.size()) - 1),
      cuda::out(0),
      exact};
  cuda::push_routed_moe(kernel, router, choice, moe, device);
  return kernel;
}

size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  Type indices = in[0];
  indices.shape[-1] = op.router_attrs.integer("k");
  return experts_traffic(in, out, op.weight(0), op.weight(3), indices);
}

Attrs routed(Attrs experts, const Attrs& router, int64_t k) {
  for (auto& [key, value] : router) {
    experts.set("router_" + key, value);
  }
  return experts.set("k", k)
      .set("normalize", int64_t{1})
      .set("eps", 1e-6)
      .set("activation", std::string("silu"));
}

/// Routers that tell experts apart by more than rounding moves logits: row e is a level of its own
/// times a direction, to which tokens are close or opposite.
Case example(std::string label, mx::Shape x, int experts, int inner, const Attrs& attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        const int width = x.back();
        mx::Shape one(x.size(), 1);
        one.back() = width;
        const auto direction = mx::sign(random_case(one, mx::float32, 11));
        mx::Shape signs = x;
        signs.back() = 1;
        const auto side = mx::sign(random_case(signs, mx::float32, 12));
        const auto tokens = side * direction + random_case(x, mx::float32, 1, 0.02f);
        Arrays in = {mx::astype(tokens, dtype), mx::astype(mx::full({width}, 1.0f), dtype)};
        const auto order = mx::argsort(random_case({experts}, mx::float32, 13), -1);
        const auto levels = (mx::astype(order, mx::float32) - 0.5f * static_cast<float>(experts)) *
            (0.125f / static_cast<float>(width));
        const auto rows = mx::astype(
            mx::reshape(levels, {experts, 1}) * mx::reshape(direction, {1, width}), dtype);
        if (op.router_kind.format.bits) {
          auto& format = op.router_kind.format;
          auto parts = mx::quantize(rows, format.group_size, format.bits, op.router_kind.mode);
          in.insert(in.end(), parts.begin(), parts.end());
        } else {
          in.push_back(rows);
        }
        push_random_experts(in, x, experts, inner, op.kind, op.residual, dtype);
        return in;
      },
      attrs};
}

const Attrs residual = {{"residual", int64_t{1}}};
const Attrs exact = {{"residual", int64_t{1}}, {"exact", int64_t{1}}};

} // namespace

ZMLX_OP(moe_block)
    .args({"x", "norm_weight", "*rest"})
    .doc(
        "A mixture of experts from the residual stream on: moe_router of x [.., D] with norm=1 (norm_weight [D], eps, "
        "router [E, D], k, normalize; the router's mode, group_size and bits are router_mode, "
        "router_group_size and router_bits), and moe_mlp of the normalised x with the experts that it chose: "
        "[.., D']. Inputs: x, norm_weight, router, gate, up, down (codes, scales, biases, or what else the mode has), "
        "[residual]. Other attributes are moe_mlp's; exact=1 holds for both.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .rounds_activations()
    .traffic(traffic)
    .cases({
        example(
            "decode",
            {1, 1, 256},
            16,
            128,
            routed(weight_attrs(4, 64, residual), weight_attrs(8, 64), 8)),
        example(
            "decode 8 bit",
            {1, 256},
            40,
            192,
            routed(weight_attrs(8, 64), weight_attrs(8, 64), 3)),
        example(
            "few tokens",
            {3, 128},
            5,
            96,
            routed(weight_attrs(4, 32, residual), weight_attrs(0, 0), 3)),
        example(
            "more chosen than warps",
            {2, 128},
            33,
            64,
            routed(weight_attrs(4, 64), weight_attrs(0, 0), 19)),
        example(
            "prompt",
            {2, 37, 128},
            16,
            192,
            routed(weight_attrs(4, 64, residual), weight_attrs(8, 64), 4)),
        example(
            "mxfp4",
            {1, 256},
            8,
            96,
            routed(weight_attrs("mxfp4", residual), weight_attrs(0, 0), 4)),
        example("dense", {1, 31}, 7, 33, routed(weight_attrs(0, 0), weight_attrs(0, 0), 3)),
        example(
            "exact",
            {5, 128},
            8,
            64,
            routed(weight_attrs(4, 64, exact), weight_attrs(8, 64), 2)),
        example("one", {1}, 1, 1, routed(weight_attrs(0, 0), weight_attrs(0, 0), 1)),
    });

} // namespace zmlx
