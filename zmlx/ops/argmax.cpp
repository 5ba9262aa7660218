// zmlx/ops/argmax.cpp: where each row has its largest or its smallest element.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

/// Whole numbers in a small range, so that there are ties.
Case example(std::string label, mx::Shape shape) {
  return {
      std::move(label),
      [shape](mx::Dtype dtype) { return Arrays{mx::round(random_case(shape, dtype, 1, 2))}; },
      {}};
}

void add(const char* name, bool largest) {
  OpBuilder(name)
      .args({"x"})
      .doc(
          std::string("The index (uint32) of each row's ") + (largest ? "largest" : "smallest") +
          " element: x [.., N] to [..]. Of equal elements the lower index; a row with a NaN gives the "
          "first NaN's.")
      .function()
      .types([name](const Types& in, const Attrs&) -> Types {
        expect_inputs(name, in, 1);
        expect_rows(name, in[0], 1);
        auto& shape = in[0].shape;
        return {{Dtype::u32, Shape(shape.begin(), shape.end() - 1)}};
      })
      .reference([largest](const Arrays& in, const Attrs&) -> Arrays {
        if (in[0].size() == 0) {
          return {mx::zeros({in[0].shape().begin(), in[0].shape().end() - 1}, mx::uint32)};
        }
        return {largest ? mx::argmax(in[0], -1) : mx::argmin(in[0], -1)};
      })
      .cpu([largest](const Types&, const Types&, const Attrs&) -> CpuKernel {
        return {[largest](const Call& call, Member& member) {
          const Tensor& x = call.in[0];
          const int64_t n = x.shape()[-1];
          const Range part = member.split(x.shape().rows());
          cpu::arg_rows(
              largest,
              x.dtype(),
              x.as<std::byte>() + part.begin * n * static_cast<int64_t>(size_of(x.dtype())),
              part.end - part.begin,
              n,
              call.out[0].as<uint32_t>() + part.begin);
        }};
      })
      .cases({
          example("row", {4096}),
          example("rows", {37, 512}),
          example("one", {5, 1}),
          example("tail", {3, 31}),
          example("even", {2, 32}),
          example("over", {2, 2, 33}),
          example("empty", {0, 8}),
      });
}

const bool registered = [] {
  add("argmax", true);
  add("argmin", false);
  return true;
}();

} // namespace
} // namespace zmlx
