// zmlx/ops/moe_mlp.cpp: the chosen experts' gated MLPs, weighted and summed, with a residual after.
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/moe.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/experts.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_mlp";

struct Moe {
  WeightKind kind;
  bool residual;
  bool exact;

  /// The inputs where gate (0), up (1) and down (2) begin.
  size_t weight(size_t i) const {
    return 3 + i * kind.inputs();
  }
};

Moe settings(const Attrs& attrs) {
  auto& activation = attrs.text("activation");
  if (activation != "silu") {
    fail(name, "activation must be silu but got ", activation, ".");
  }
  return {
      product_kind(name, attrs), attrs.integer("residual", 0) != 0, attrs.integer("exact", 0) != 0};
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.weight(3) + op.residual);
  auto& x = in[0];
  auto& indices = in[1];
  expect_floating(name, "x", x);
  if (x.shape.rank() == 0 || indices.shape.rank() == 0) {
    fail(name, "x and indices must have at least 1 axis but got a number.");
  }
  expect_dtype(name, "indices", indices, Dtype::u32);
  Shape chosen = x.shape;
  chosen[-1] = indices.shape[-1];
  expect_shape(name, "indices", indices, chosen);
  expect_dtype(name, "weights", in[2], x.dtype);
  expect_shape(name, "weights", in[2], chosen);
  Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, x.dtype, 3);
  Shape up = expect_weight(name, "up", in, op.weight(1), op.kind, x.dtype, 3);
  Shape down = expect_weight(name, "down", in, op.weight(2), op.kind, x.dtype, 3);
  if (gate[2] != x.shape[-1] || !(up == gate) || down[0] != gate[0] || down[2] != gate[1]) {
    fail(
        name,
        "gate and up must be (E, F, ",
        x.shape[-1],
        ") and down (E, D, F) but they are ",
        to_string(gate),
        ", ",
        to_string(up),
        " and ",
        to_string(down),
        ".");
  }
  Type out = x;
  out.shape[-1] = down[1];
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), x.dtype);
    expect_shape(name, "residual", in.back(), out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto experts = [&](const mx::array& x, size_t i) {
    return weight_gather_matmul(x, in, op.weight(i), in[1], op.kind);
  };
  auto x = mx::expand_dims(in[0], {-2, -3});
  auto gate = experts(x, 0);
  auto hidden = gate * mx::sigmoid(gate) * experts(x, 1);
  auto y = mx::squeeze(experts(hidden, 2), -2);
  auto out = mx::sum(y * mx::expand_dims(in[2], -1), -2);
  return {op.residual ? in.back() + out : out};
}

struct Kernel {
  Pairs pairs;
  ExpertGate gate;
  ExpertSum sum;
  // Scratch, in bytes, after the prepared x.
  size_t hidden_at = 0; // hidden rows, one a pair, in sorted order
  size_t prepared_at = 0; // the same prepared
  size_t sort_at = 0;
  size_t sums_at = 0;
  size_t scratch = 0;

  void lay_out();
  void operator()(const Call& call, Member& member) const;
};

void Kernel::lay_out() {
  auto take = [&](size_t bytes) {
    const size_t at = scratch;
    scratch += (bytes + 63) / 64 * 64;
    return at;
  };
  const auto& down = sum.matmul;
  take(cpu::prepare_scratch(gate.matmul, pairs.tokens));
  hidden_at = take(static_cast<size_t>(pairs.count() * down.k()) * size_of(down.dtype()));
  prepared_at = take(cpu::prepare_scratch(down, pairs.count()));
  sort_at = take(pairs.scratch());
  sums_at = take(sum.scratch(pairs));
}

void Kernel::operator()(const Call& call, Member& member) const {
  Pairs::Few own;
  const auto* indices = call.in[1].as<uint32_t>();
  const auto s = pairs.sort(indices, call.scratch + sort_at, own, member);
  cpu::LocalRows local;
  const auto x = cpu::prepare_rows(
      gate.matmul, call.in[0].data, pairs.tokens, {}, call.scratch, local, member);
  std::byte* rows = call.scratch + hidden_at;
  gate.run(call, pairs, s, x, rows, member);
  const auto hidden = cpu::prepare_rows(
      sum.matmul, rows, pairs.count(), {}, call.scratch + prepared_at, local, member);
  sum.run(call, pairs, s, hidden, call.scratch + sums_at, member);
}

CpuKernel kernel(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  const Dtype dtype = in[0].dtype;
  const Shape& gate = in[op.weight(0)].shape;
  const int64_t tokens = in[0].shape.rows();
  const int64_t chosen = in[1].shape[-1];
  if (!cpu::Matmul::supports(dtype, op.kind.format, in[0].shape[-1]) ||
      !cpu::Matmul::supports(dtype, op.kind.format, gate[1]) || tokens * chosen == 0 ||
      tokens * chosen > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  const Pairs pairs{name, tokens, chosen, gate[0]};
  const auto activations = op.kind.activations;
  const int64_t rows = pairs.rows_of_an_expert();
  const cpu::Matmul in_matmul(dtype, op.kind.format, in[0].shape[-1], activations, rows);
  const cpu::Matmul out_matmul(dtype, op.kind.format, gate[1], activations, rows);
  Kernel run{
      pairs,
      {in_matmul, op.kind, op.weight(0), op.weight(1), gate[1], op.exact, true},
      {out_matmul, op.kind, op.weight(2), 2, out[0].shape[-1], op.residual, op.exact}};
  run.lay_out();
  return {run, run.scratch};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const int64_t pairs = in[1].shape.size();
  if (pairs == 0 || op.kind.activations != cpu::Activations::exact) {
    return {};
  }
  auto at = [&](size_t i) { return static_cast<int>(op.weight(i)); };
  const Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, in[0].dtype, 3);
  cuda::Moe moe{
      in[0].dtype,
      op.kind.format,
      in[0].shape.rows(),
      in[1].shape[-1],
      gate[0],
      gate[2],
      gate[1],
      out[0].shape[-1],
      cuda::in(0),
      cuda::in(1),
      cuda::in(2),
      at(0),
      at(1),
      at(2),
      op.residual,
      cuda::in(static_cast<int>(in.size()) - 1),
      cuda::out(0),
      op.exact};
  cuda::Kernel kernel;
  cuda::push_moe(kernel, moe, device);
  return kernel;
}

size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  return experts_traffic(in, out, op.weight(0), op.weight(3), in[1]);
}

Case example(std::string label, mx::Shape x, int experts, int chosen, int inner, Attrs attrs) {
  attrs.set("activation", std::string("silu"));
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        Arrays in = random_routing(x, experts, chosen, dtype);
        push_random_experts(in, x, experts, inner, op.kind, op.residual, dtype);
        return in;
      },
      attrs};
}

const Attrs residual = {{"residual", int64_t{1}}};

} // namespace

ZMLX_OP(moe_mlp)
    .args({"x", "indices", "weights", "*rest"})
    .doc(
        "The MLPs of a mixture of experts: sum over j of weights[.., j] * down_e(silu(gate_e(x)) * "
        "up_e(x)), e = indices[.., j], for x [.., D], indices uint32 and weights [.., k], gate and up "
        "[E, F, D], down [E, D', F] (mode none, or quantised with group_size and bits): [.., D']. "
        "residual=1: the last input [.., D'] is added. Inputs: x, indices, weights, gate, up, down "
        "(codes, scales, biases, or what else the mode has), [residual]. The hidden values are rounded to the "
        "dtype; exact=1 also rounds where the unfused graph does. activations=int8: x and the hidden values "
        "are rounded as linear says.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .rounds_activations()
    .traffic(traffic)
    .cases({
        example("decode", {1, 1, 256}, 16, 8, 128, weight_attrs(4, 64, residual)),
        example("decode 8 bit", {1, 256}, 8, 2, 192, weight_attrs(8, 64)),
        example("few tokens", {3, 128}, 5, 3, 96, weight_attrs(4, 32, residual)),
        example("prompt", {2, 37, 128}, 16, 4, 192, weight_attrs(4, 64, residual)),
        example("one expert", {140, 64}, 1, 1, 128, weight_attrs(8, 64)),
        example("odd bits", {33, 128}, 4, 2, 128, weight_attrs(5, 128)),
        example("six bits", {1, 128}, 4, 2, 192, weight_attrs(6, 64)),
        example("mxfp4", {1, 256}, 8, 4, 96, weight_attrs("mxfp4", residual)),
        example("mxfp4 prompt", {37, 64}, 8, 2, 96, weight_attrs("mxfp4")),
        example("mxfp8", {3, 96}, 5, 2, 64, weight_attrs("mxfp8")),
        example("nvfp4", {9, 48}, 5, 2, 80, weight_attrs("nvfp4")),
        example("dense", {1, 31}, 7, 3, 33, weight_attrs(0, 0, residual)),
        example("dense prompt", {33, 97}, 32, 8, 131, weight_attrs(0, 0)),
        example(
            "exact",
            {5, 128},
            8,
            2,
            64,
            weight_attrs(4, 64, {{"residual", int64_t{1}}, {"exact", int64_t{1}}})),
        example(
            "exact prompt",
            {67, 64},
            8,
            2,
            64,
            weight_attrs(4, 64, {{"residual", int64_t{1}}, {"exact", int64_t{1}}})),
        example("one", {1}, 1, 1, 1, weight_attrs(0, 0)),
    });

} // namespace zmlx
