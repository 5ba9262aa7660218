// zmlx/ops/gather_qmm_swiglu.cpp: gate, up and SwiGLU of the chosen experts in one pass.
#include <limits>

#include "mlx/ops.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/experts.h"

namespace zmlx {
namespace {

constexpr const char* name = "gather_qmm_swiglu";

struct Gated {
  WeightKind kind;

  /// The inputs where gate (0) and up (1) begin, and end (2).
  size_t weight(size_t i) const {
    return 2 + i * kind.inputs();
  }
};

Types types(const Types& in, const Attrs& attrs) {
  const Gated op{weight_kind(name, attrs)};
  expect_inputs(name, in, op.weight(2));
  auto &x = in[0], &indices = in[1];
  expect_rows(name, x);
  expect_dtype(name, "indices", indices, Dtype::u32);
  Shape chosen = x.shape;
  chosen[-1] = indices.shape.rank() ? indices.shape[-1] : 0;
  expect_shape(name, "indices", indices, chosen);
  Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, x.dtype, 3);
  Shape up = expect_weight(name, "up", in, op.weight(1), op.kind, x.dtype, 3);
  if (gate[2] != x.shape[-1] || !(up == gate)) {
    fail(
        name,
        "gate and up must be (E, F, ",
        x.shape[-1],
        ") but they are ",
        to_string(gate),
        " and ",
        to_string(up),
        ".");
  }
  Type out{x.dtype, chosen};
  out.shape.push_back(gate[1]);
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const Gated op{weight_kind(name, attrs)};
  if (in[1].size() == 0) {
    auto shape = in[1].shape();
    shape.push_back(in[op.weight(0)].shape(1));
    return {mx::zeros(shape, in[0].dtype())};
  }
  auto x = mx::expand_dims(in[0], {-2, -3});
  auto gate = weight_gather_matmul(x, in, op.weight(0), in[1], op.kind);
  auto up = weight_gather_matmul(x, in, op.weight(1), in[1], op.kind);
  return {mx::squeeze(gate * mx::sigmoid(gate) * up, -2)};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const Gated op{weight_kind(name, attrs)};
  const Dtype dtype = in[0].dtype;
  const int64_t k = in[0].shape[-1];
  const Shape& gate = in[op.weight(0)].shape;
  const Pairs pairs{name, in[0].shape.rows(), in[1].shape[-1], gate[0]};
  if (!cpu::Matmul::supports(dtype, op.kind.format, k) || pairs.count() == 0 ||
      pairs.count() > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  const cpu::Matmul matmul(
      dtype, op.kind.format, k, cpu::Activations::exact, pairs.rows_of_an_expert());
  const ExpertGate experts{matmul, op.kind, op.weight(0), op.weight(1), gate[1], false, false};
  const size_t sort_at = (cpu::prepare_scratch(matmul, pairs.tokens) + 63) / 64 * 64;
  auto run = [pairs, experts, sort_at](const Call& call, Member& member) {
    Pairs::Few own;
    const auto* indices = call.in[1].as<uint32_t>();
    const auto s = pairs.sort(indices, call.scratch + sort_at, own, member);
    cpu::LocalRows local;
    const auto x = cpu::prepare_rows(
        experts.matmul, call.in[0].data, pairs.tokens, {}, call.scratch, local, member);
    experts.run(call, pairs, s, x, call.out[0].as<std::byte>(), member);
  };
  return {run, sort_at + pairs.scratch()};
}

size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  const Gated op{weight_kind(name, attrs)};
  return experts_traffic(in, out, op.weight(0), op.weight(2), in[1]);
}

Case example(std::string label, mx::Shape x, int experts, int chosen, int inner, Attrs attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto kind = weight_kind(name, attrs);
        Arrays in = random_routing(x, experts, chosen, dtype);
        in.pop_back();
        push_random_weight(in, {experts, inner, x.back()}, kind, dtype, 3);
        push_random_weight(in, {experts, inner, x.back()}, kind, dtype, 4);
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(gather_qmm_swiglu)
    .args({"x", "indices", "*weights"})
    .doc(
        "silu(gate_e(x)) * up_e(x) for e = indices[.., j], x [.., D], indices uint32 [.., K], gate and "
        "up [E, F, D] (mode none, or quantised with group_size and bits): [.., K, F]. Each chosen "
        "expert's weights are read once. Inputs: x, indices, gate, up (codes, scales, biases, or what "
        "else the mode has).")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .traffic(traffic)
    .cases({
        example("decode", {1, 1, 256}, 16, 8, 128, weight_attrs(4, 64)),
        example("few tokens", {3, 128}, 5, 3, 96, weight_attrs(8, 32)),
        example("prompt", {2, 37, 128}, 16, 4, 192, weight_attrs(4, 64)),
        example("mxfp4", {1, 256}, 8, 4, 96, weight_attrs("mxfp4")),
        example("dense", {1, 31}, 7, 3, 33, weight_attrs(0, 0)),
        example("dense prompt", {33, 97}, 32, 8, 131, weight_attrs(0, 0)),
        example("one", {1}, 1, 1, 1, weight_attrs(0, 0)),
    });

} // namespace zmlx
