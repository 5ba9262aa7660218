// zmlx/ops/topk.cpp: the k largest of each row and where they are.
#include <limits>

#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/kernel/cpu/top_k.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "topk";
constexpr int64_t most = 1024; // insertion into a sorted list: for short lists

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 1);
  expect_rows(name, in[0]);
  const int64_t k = attrs.integer("k");
  if (k < 1 || k > in[0].shape[-1]) {
    fail(name, "k must be from 1 to x's last axis, ", in[0].shape[-1], ", but got ", k, ".");
  }
  Type values = in[0];
  values.shape[-1] = k;
  return {values, {Dtype::u32, values.shape}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const auto& x = in[0];
  const int n = x.shape(-1);
  const int k = static_cast<int>(attrs.integer("k"));
  // An ascending stable sort of the row read backwards, read backwards again: equal ones in order
  // of their index.
  auto backwards = mx::arange(n - 1, -1, -1, mx::uint32);
  auto sorted = mx::argsort(mx::stop_gradient(mx::take(x, backwards, -1)), -1);
  auto order = mx::take(sorted, backwards, -1);
  auto best = mx::take(order, mx::arange(0, k, mx::uint32), -1);
  auto indices = mx::subtract(mx::array(static_cast<uint32_t>(n - 1), mx::uint32), best);
  indices = mx::astype(indices, mx::uint32);
  return {mx::take_along_axis(x, indices, -1), indices};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  const int64_t k = attrs.integer("k");
  if (k > most) {
    return {};
  }
  return {[k](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const auto bytes = static_cast<int64_t>(size_of(x.dtype()));
    const int64_t n = x.shape()[-1];
    cpu::over_rows(member, x.shape().rows(), n * bytes, [&](Range part) {
      cpu::top_k_rows(
          x.dtype(),
          x.as<std::byte>() + part.begin * n * bytes,
          part.end - part.begin,
          n,
          k,
          call.out[0].as<std::byte>() + part.begin * k * bytes,
          call.out[1].as<uint32_t>() + part.begin * k);
    });
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  const Shape& x = in[0].shape;
  const int64_t k = attrs.integer("k");
  // The kernel goes over the row once for each of the k.
  if (x.size() == 0 || k > 32 || std::max(x.rows(), x[-1]) > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  auto launch =
      cuda::warp_a_row("search.cuh", "top_k<" + cuda::text_of(in[0].dtype) + ">", x.rows());
  launch.arguments = {
      cuda::in(0), cuda::out(0), cuda::out(1), cuda::i32(x.rows()), cuda::i32(x[-1]), cuda::i32(k)};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape shape, int64_t k) {
  return {
      std::move(label),
      [shape](mx::Dtype dtype) { return Arrays{random_case(shape, dtype, 1)}; },
      {{"k", k}}};
}

} // namespace

ZMLX_OP(topk)
    .args({"x"})
    .doc(
        "The k largest elements of each row of x [.., N], largest first, and their indices (uint32), "
        "both [.., k]. Of equal elements the one of lower index comes first; NaN is larger than any "
        "number, as in mx.sort.")
    .function({{"k", "how many, from 1 to N", {}}})
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("five", {37, 512}, 5),
        example("one", {5, 1}, 1),
        example("largest", {7, 100}, 1),
        example("all", {3, 31}, 31),
        example("over", {2, 2, 33}, 8),
        example("empty", {0, 8}, 2),
    });

} // namespace zmlx
