// zmlx/ops/moe_dispatch.cpp: a row for each of a token's experts, all of one expert's together.
#include <algorithm>
#include <cstring>
#include <limits>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_dispatch";
constexpr int64_t most_pairs = 1 << 17; // that a GPU sorts by counting

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 2);
  auto &x = in[0], &indices = in[1];
  expect_rows(name, x);
  expect_dtype(name, "indices", indices, Dtype::u32);
  Shape chosen = x.shape;
  chosen[-1] = indices.shape.rank() ? indices.shape[-1] : 0;
  expect_shape(name, "indices", indices, chosen);
  const int64_t pairs = chosen.size();
  if (pairs > std::numeric_limits<int32_t>::max()) {
    fail(name, "there must be fewer than 2^31 indices but got ", pairs, ".");
  }
  const Type numbers{Dtype::u32, {pairs}};
  return {{x.dtype, {pairs, x.shape[-1]}}, numbers, numbers};
}

/// The token of each sorted pair, from the order of the pairs.
mx::array tokens_of(const mx::array& order, int chosen) {
  return mx::floor_divide(order, mx::array(static_cast<uint32_t>(std::max(chosen, 1))));
}

Arrays reference(const Arrays& in, const Attrs&) {
  auto experts = mx::flatten(in[1]);
  auto order = mx::argsort(experts);
  const int width = in[0].shape(-1);
  if (in[0].size() == 0 || experts.size() == 0) {
    return {mx::zeros({static_cast<int>(experts.size()), width}, in[0].dtype()), experts, order};
  }
  auto x = mx::reshape(in[0], {-1, width});
  auto rows = mx::take(x, tokens_of(order, in[1].shape(-1)), 0);
  return {rows, mx::take(experts, order), order};
}

Arrays gradient(const Gradient& of) {
  auto& x = of.inputs[0];
  const int64_t tokens = x.shape(-1) ? static_cast<int64_t>(x.size()) / x.shape(-1) : 0;
  auto rows = tokens_of(of.outputs[2], of.inputs[1].shape(-1));
  auto dx = of.apply("scatter_add", {rows, of.cotangents[0]}, {{"rows", tokens}})[0];
  return {mx::reshape(dx, x.shape()), of.inputs[1]};
}

void run(const Call& call, Member& member) {
  const Tensor& x = call.in[0];
  const auto* indices = call.in[1].as<uint32_t>();
  const int64_t chosen = call.in[1].shape()[-1];
  const int64_t pairs = call.in[1].shape().size();
  const auto bytes = static_cast<size_t>(x.shape()[-1]) * size_of(x.dtype());
  auto* experts = call.out[1].as<uint32_t>();
  auto* order = call.out[2].as<uint32_t>();
  if (member.rank() == 0) {
    // The expert above, the pair below: no two are equal, and a token's pairs stay in order.
    auto* keys = reinterpret_cast<uint64_t*>(call.scratch);
    for (int64_t i = 0; i < pairs; ++i) {
      keys[i] = uint64_t{indices[i]} << 32 | static_cast<uint64_t>(i);
    }
    std::sort(keys, keys + pairs);
    for (int64_t i = 0; i < pairs; ++i) {
      experts[i] = static_cast<uint32_t>(keys[i] >> 32);
      order[i] = static_cast<uint32_t>(keys[i]);
    }
  }
  member.barrier();
  const Range part = member.split(pairs);
  for (int64_t i = part.begin; i < part.end && bytes; ++i) {
    const auto token = static_cast<size_t>(order[i] / chosen);
    std::memcpy(
        call.out[0].as<std::byte>() + static_cast<size_t>(i) * bytes,
        x.as<std::byte>() + token * bytes,
        bytes);
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs&) {
  return {run, static_cast<size_t>(in[1].shape.size()) * sizeof(uint64_t)};
}

/// Each pair is compared to all others: for more than a long prompt has there is none.
cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device&) {
  const int64_t pairs = in[1].shape.size();
  const int64_t width = in[0].shape[-1];
  if (!cuda::countable({pairs, width}) || pairs > most_pairs) {
    return {};
  }
  auto sort = cuda::thread_a_unit("route.cuh", "sort_pairs", pairs);
  sort.arguments = {cuda::in(1), cuda::out(1), cuda::out(2), cuda::i32(pairs)};
  const auto pack = static_cast<int64_t>(16 / size_of(in[0].dtype));
  auto copy = cuda::thread_a_unit(
      "route.cuh",
      "dispatch_rows<" + cuda::text_of(in[0].dtype) + ">",
      pairs * ((width + pack - 1) / pack));
  copy.arguments = {
      cuda::in(0),
      cuda::out(2),
      cuda::out(0),
      cuda::i32(pairs),
      cuda::i32(in[1].shape[-1]),
      cuda::i32(width)};
  return {{sort, copy}, 0};
}

Case example(std::string label, mx::Shape x, int experts, int chosen) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto shape = x;
        shape.back() = chosen;
        auto indices = mx::random::randint(0, experts, shape, mx::uint32, mx::random::key(3));
        return Arrays{random_case(x, dtype, 1), indices};
      },
      {}};
}

} // namespace

ZMLX_OP(moe_dispatch)
    .args({"x", "indices"})
    .doc(
        "(rows, experts, order) for x [.., D] and the experts' numbers, indices [.., K] (uint32): the "
        "pairs of a token and one of its experts, sorted by expert, a token's in their order. rows "
        "[M, D] are the tokens of the M pairs, experts [M] (uint32) their experts, as gather_mm and "
        "gather_qmm with sorted_indices take them, order [M] (uint32) the pairs' places in indices. "
        "moe_combine with that order is the way back.")
    .function()
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("prompt", {2, 37, 64}, 16, 4),
        example("token", {1, 33}, 8, 8),
        example("one", {1}, 1, 1),
        example("tail", {31, 7}, 3, 2),
        example("empty", {0, 8}, 4, 2),
    });

} // namespace zmlx
