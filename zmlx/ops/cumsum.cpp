// zmlx/ops/cumsum.cpp: running sums along each row.
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

Types types(const Types& in, const Attrs&) {
  expect_inputs("cumsum", in, 1);
  expect_rows("cumsum", in[0]);
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  return {mx::astype(mx::cumsum(mx::astype(in[0], mx::float32), -1), in[0].dtype())};
}

CpuKernel kernel(const Types&, const Types&, const Attrs&) {
  return {[](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const int64_t n = x.shape()[-1];
    const int64_t width = n * static_cast<int64_t>(size_of(x.dtype()));
    const bool past_cache = cpu::past_cache(call.out[0], width);
    cpu::over_rows(member, x.shape().rows(), width, [&](Range part) {
      cpu::cumsum_rows(
          x.dtype(),
          x.as<std::byte>() + part.begin * width,
          part.end - part.begin,
          n,
          past_cache,
          call.out[0].as<std::byte>() + part.begin * width);
    });
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device& device) {
  const Shape& x = in[0].shape;
  if (x.size() == 0 || std::max(x.rows(), x[-1]) > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  const auto a_warp = static_cast<int64_t>(32 * 16 / size_of(in[0].dtype)); // elements at a time
  const bool shared = x.rows() < device.multiprocessors && x[-1] > a_warp;
  auto launch = cuda::warp_a_row(
      "search.cuh", "cumsum<" + cuda::text_of(in[0].dtype) + (shared ? ", 8>" : ", 1>"), x.rows());
  if (shared) {
    launch.grid[0] = static_cast<uint32_t>(x.rows());
  }
  launch.arguments = {cuda::in(0), cuda::out(0), cuda::i32(x.rows()), cuda::i32(x[-1])};
  return {{launch}, 0};
}

Case example(std::string name, mx::Shape shape) {
  return {
      std::move(name),
      [shape](mx::Dtype dtype) { return Arrays{random_case(shape, dtype, 1)}; },
      {}};
}

} // namespace

ZMLX_OP(cumsum)
    .args({"x"})
    .doc("Sums of x [.., N] from the begin of each row to each element, accumulated in float32.")
    .function()
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("row", {1, 1024}),
        example("long rows", {2, 4099}),
        example("rows", {37, 100}),
        example("one", {5, 1}),
        example("tail", {3, 31}),
        example("even", {2, 32}),
        example("over", {2, 2, 33}),
        example("empty", {0, 8}),
        example("empty rows", {3, 0}),
    });

} // namespace zmlx
