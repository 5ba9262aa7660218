// zmlx/ops/gather_qmm_combine.cpp: the chosen experts' down projections, weighted and summed, in
// one pass, with a residual after.
#include <limits>

#include "mlx/ops.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/experts.h"

namespace zmlx {
namespace {

constexpr const char* name = "gather_qmm_combine";

struct Combined {
  WeightKind kind;
  bool residual;

  size_t inputs() const {
    return 3 + kind.inputs() + residual;
  }
};

Combined settings(const Attrs& attrs) {
  return {weight_kind(name, attrs), attrs.integer("residual", 0) != 0};
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.inputs());
  auto &act = in[0], &indices = in[1], &weights = in[2];
  expect_floating(name, "act", act);
  if (act.shape.rank() < 2) {
    fail(name, "act must have at least 2 axes but got ", to_string(act), ".");
  }
  const Shape chosen(act.shape.begin(), act.shape.end() - 1);
  expect_dtype(name, "indices", indices, Dtype::u32);
  expect_shape(name, "indices", indices, chosen);
  if (weights.dtype != Dtype::f32 && weights.dtype != act.dtype) {
    fail(
        name,
        "weights must be float32 or ",
        name_of(act.dtype),
        " but got ",
        name_of(weights.dtype),
        ".");
  }
  expect_shape(name, "weights", weights, chosen);
  Shape down = expect_weight(name, "down", in, 3, op.kind, act.dtype, 3);
  if (down[2] != act.shape[-1]) {
    fail(name, "down must be (E, D, ", act.shape[-1], ") but it is ", to_string(down), ".");
  }
  Type out{act.dtype, chosen};
  out.shape[-1] = down[1];
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), act.dtype);
    expect_shape(name, "residual", in.back(), out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto shape = in[1].shape();
  shape.back() = in[3].shape(1);
  auto sum = mx::zeros(shape, mx::float32);
  if (in[1].size() > 0) {
    auto act = mx::expand_dims(in[0], -2);
    auto y = mx::squeeze(weight_gather_matmul(act, in, 3, in[1], op.kind), -2);
    auto shares = mx::expand_dims(mx::astype(in[2], mx::float32), -1);
    sum = mx::sum(mx::astype(y, mx::float32) * shares, -2);
  }
  if (op.residual) {
    sum = sum + mx::astype(in.back(), mx::float32);
  }
  return {mx::astype(sum, in[0].dtype())};
}

CpuKernel kernel(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  const Dtype dtype = in[0].dtype;
  const int64_t k = in[0].shape[-1];
  const Pairs pairs{name, in[1].shape.rows(), in[1].shape[-1], in[3].shape[0]};
  if (!cpu::Matmul::supports(dtype, op.kind.format, k) || pairs.count() == 0 ||
      pairs.count() > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  const cpu::Matmul matmul(
      dtype, op.kind.format, k, cpu::Activations::exact, pairs.rows_of_an_expert());
  const ExpertSum sum{matmul, op.kind, 3, 2, out[0].shape[-1], op.residual, false};
  const size_t sort_at = (cpu::prepare_scratch(matmul, pairs.count()) + 63) / 64 * 64;
  const size_t sums_at = sort_at + (pairs.scratch() + 63) / 64 * 64;
  auto run = [pairs, sum, sort_at, sums_at](const Call& call, Member& member) {
    Pairs::Few own;
    const auto* indices = call.in[1].as<uint32_t>();
    const auto s = pairs.sort(indices, call.scratch + sort_at, own, member);
    cpu::LocalRows local;
    auto rows = cpu::prepare_rows(
        sum.matmul, call.in[0].data, pairs.count(), {}, call.scratch, local, member);
    rows.index = s.pair;
    sum.run(call, pairs, s, rows, call.scratch + sums_at, member);
  };
  return {run, sums_at + sum.scratch(pairs)};
}

size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  return experts_traffic(in, out, 3, 3 + settings(attrs).kind.inputs(), in[1]);
}

Case example(std::string label, mx::Shape x, int experts, int chosen, int inner, Attrs attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        Arrays in = random_routing(x, experts, chosen, dtype);
        auto shape = in[1].shape();
        shape.push_back(inner);
        in[0] = random_case(shape, dtype, 8);
        push_random_weight(in, {experts, x.back(), inner}, op.kind, dtype, 3);
        if (op.residual) {
          in[2] = mx::astype(in[2], mx::float32);
          in.push_back(random_case(x, dtype, 6));
        }
        return in;
      },
      attrs};
}

const Attrs residual = {{"residual", int64_t{1}}};

} // namespace

ZMLX_OP(gather_qmm_combine)
    .args({"act", "indices", "weights", "*rest"})
    .doc(
        "sum over j of weights[.., j] * down_e(act[.., j, :]), e = indices[.., j], for act [.., K, F], "
        "indices uint32 and weights (float32 or act's dtype) [.., K], down [E, D, F] (mode none, or "
        "quantised with group_size and bits): [.., D], summed in float32. residual=1: the last input "
        "[.., D] is added. Inputs: act, indices, weights, down (codes, scales, biases, or what else "
        "the mode has), [residual].")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .traffic(traffic)
    .cases({
        example("decode", {1, 1, 256}, 16, 8, 128, weight_attrs(4, 64, residual)),
        example("few tokens", {3, 128}, 5, 3, 96, weight_attrs(8, 32)),
        example("prompt", {2, 37, 128}, 16, 4, 192, weight_attrs(4, 64, residual)),
        example("mxfp4", {1, 256}, 8, 4, 96, weight_attrs("mxfp4")),
        example("dense", {1, 31}, 7, 3, 33, weight_attrs(0, 0, residual)),
        example("dense prompt", {33, 97}, 32, 8, 131, weight_attrs(0, 0)),
        example("one", {1}, 1, 1, 1, weight_attrs(0, 0)),
    });

} // namespace zmlx
