// zmlx/ops/moe_combine.cpp: the weighted sum of a token's experts, with a residual after.
#include <algorithm>
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_combine";
constexpr int64_t block = 1024; // elements of a row that are summed at a time

struct Combine {
  bool sorted; // rows in the order of an input of pair numbers
  bool residual;

  size_t inputs() const {
    return size_t{2} + sorted + residual;
  }
};

Combine settings(const Attrs& attrs) {
  return {attrs.integer("sorted", 0) != 0, attrs.integer("residual", 0) != 0};
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.inputs());
  auto &rows = in[0], &weights = in[1];
  expect_floating(name, "expert_outputs", rows);
  if (weights.dtype != Dtype::f32 && weights.dtype != rows.dtype) {
    fail(
        name,
        "weights must be float32 or ",
        name_of(rows.dtype),
        " but got ",
        name_of(weights.dtype),
        ".");
  }
  if (weights.shape.rank() == 0 || rows.shape.rank() < 2) {
    fail(
        name,
        "expert_outputs must have at least 2 axes and weights 1 but they are ",
        to_string(rows),
        " and ",
        to_string(weights),
        ".");
  }
  const int64_t width = rows.shape[-1];
  Shape expected = op.sorted ? Shape{weights.shape.size()} : weights.shape;
  expected.push_back(width);
  expect_shape(name, "expert_outputs", rows, expected);
  if (op.sorted) {
    expect_dtype(name, "order", in[2], Dtype::u32);
    expect_shape(name, "order", in[2], {weights.shape.size()});
  }
  Type out{rows.dtype, weights.shape};
  out.shape[-1] = width;
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), rows.dtype);
    expect_shape(name, "residual", in.back(), out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto rows = mx::astype(in[0], mx::float32);
  if (op.sorted) {
    auto shape = in[1].shape();
    shape.push_back(in[0].shape(-1));
    rows = mx::reshape(mx::take(rows, mx::argsort(in[2]), 0), shape);
  }
  auto weights = mx::expand_dims(mx::astype(in[1], mx::float32), -1);
  auto sum = mx::sum(rows * weights, -2);
  if (op.residual) {
    sum = sum + mx::astype(in.back(), mx::float32);
  }
  return {mx::astype(sum, in[0].dtype())};
}

/// places[pair] = where the pair is among the rows.
void invert(const Tensor& order, uint32_t* places) {
  const int64_t pairs = order.shape().size();
  constexpr uint32_t none = std::numeric_limits<uint32_t>::max();
  std::fill_n(places, pairs, none);
  for (int64_t i = 0; i < pairs; ++i) {
    const uint32_t pair = order.as<uint32_t>()[i];
    if (pair >= pairs || places[pair] != none) {
      fail(
          name,
          "order must have each number below ",
          pairs,
          " once but has ",
          pair,
          pair < pairs ? " twice." : ".");
    }
    places[pair] = static_cast<uint32_t>(i);
  }
}

void run(const Combine& op, const Call& call, Member& member) {
  const Tensor& rows = call.in[0];
  const Tensor& weights = call.in[1];
  const Dtype dtype = rows.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const auto weight_size = static_cast<int64_t>(size_of(weights.dtype()));
  const int64_t n = rows.shape()[-1];
  const int64_t chosen = weights.shape()[-1];
  auto* places = reinterpret_cast<uint32_t*>(call.scratch);
  if (op.sorted) {
    if (member.rank() == 0) {
      invert(call.in[2], places);
    }
    member.barrier();
  }
  alignas(64) float sums[block];
  alignas(64) float row[block];
  const int64_t blocks = (n + block - 1) / block;
  const Range part = member.split(call.out[0].shape().rows() * blocks);
  for (int64_t u = part.begin; u < part.end; ++u) {
    const int64_t token = u / blocks;
    const int64_t j = u % blocks * block;
    const int64_t width = std::min(block, n - j);
    std::fill_n(sums, width, 0.0f);
    for (int64_t pair = token * chosen; pair < (token + 1) * chosen; ++pair) {
      float weight = 0;
      cpu::load_row(weights.dtype(), weights.as<std::byte>() + pair * weight_size, &weight, 1);
      const int64_t place = op.sorted ? places[pair] : pair;
      cpu::load_row(dtype, rows.as<std::byte>() + (place * n + j) * size, row, width);
      cpu::axpy_row(weight, row, sums, width);
    }
    const int64_t at = (token * n + j) * size;
    if (op.residual) {
      cpu::load_row(dtype, call.in.back().as<std::byte>() + at, row, width);
      cpu::axpy_row(1, row, sums, width);
    }
    cpu::store_row(dtype, sums, call.out[0].as<std::byte>() + at, width);
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  const auto pairs = static_cast<size_t>(in[1].shape.size());
  return {
      [op](const Call& call, Member& member) { run(op, call, member); },
      op.sorted ? pairs * sizeof(uint32_t) : 0};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device&) {
  const auto op = settings(attrs);
  const int64_t pairs = in[1].shape.size();
  const int64_t tokens = out[0].shape.rows();
  const int64_t width = out[0].shape[-1];
  if (!cuda::countable({pairs, tokens, width})) {
    return {};
  }
  cuda::Kernel kernel;
  if (op.sorted) {
    auto invert = cuda::thread_a_unit("route.cuh", "invert_order", pairs);
    invert.arguments = {cuda::in(2), cuda::scratch(), cuda::i32(pairs)};
    kernel.launches.push_back(std::move(invert));
    kernel.scratch = static_cast<size_t>(pairs) * sizeof(uint32_t);
  }
  const auto pack = static_cast<int64_t>(16 / size_of(in[0].dtype));
  auto combine = cuda::thread_a_unit(
      "route.cuh",
      "combine_rows<" + cuda::text_of(in[0].dtype) + ", " + cuda::text_of(in[1].dtype) + ", " +
          cuda::text_of(op.sorted) + ", " + cuda::text_of(op.residual) + ">",
      tokens * ((width + pack - 1) / pack));
  combine.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::in(op.sorted ? 2 : 1),
      op.sorted ? cuda::scratch() : cuda::in(1),
      cuda::in(static_cast<int>(in.size()) - 1),
      cuda::out(0),
      cuda::i32(tokens),
      cuda::i32(in[1].shape[-1]),
      cuda::i32(width)};
  kernel.launches.push_back(std::move(combine));
  return kernel;
}

Case example(std::string label, mx::Shape weights, int n, Attrs attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        auto out = weights;
        out.back() = n;
        auto rows = weights;
        rows.push_back(n);
        auto values = random_case(rows, dtype, 1);
        auto shares = mx::softmax(random_case(weights, mx::float32, 2), -1);
        const auto pairs = static_cast<int>(shares.size());
        Arrays in{
            op.sorted ? mx::reshape(values, {pairs, n}) : values,
            op.residual ? shares : mx::astype(shares, dtype)};
        if (op.sorted) {
          in.push_back(mx::argsort(random_case({pairs}, mx::float32, 3)));
        }
        if (op.residual) {
          in.push_back(random_case(out, dtype, 4));
        }
        return in;
      },
      attrs};
}

const Attrs residual = {{"residual", int64_t{1}}};
const Attrs sorted = {{"sorted", int64_t{1}}};

} // namespace

ZMLX_OP(moe_combine)
    .args({"expert_outputs", "weights", "*rest"})
    .doc(
        "sum over k of weights[.., k] * expert_outputs[.., k, :] for expert_outputs [.., K, D] and "
        "weights [.., K] (float32 or the outputs' dtype), in float32, rounded once: [.., D]. "
        "sorted=1: expert_outputs are rows [M, D] in the order that moe_dispatch gave, which is the "
        "next input, uint32 [M]. residual=1: the last input [.., D] is added.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("tokens", {37, 8}, 256, {}),
        example("residual", {2, 5, 4}, 33, residual),
        example("sorted", {31, 4}, 64, sorted),
        example(
            "sorted, residual",
            {3, 5, 2},
            31,
            {{"residual", int64_t{1}}, {"sorted", int64_t{1}}}),
        example("long rows", {3, 2}, 2051, residual),
        example("one", {1}, 1, {}),
        example("empty", {0, 4}, 8, {}),
    });

} // namespace zmlx
