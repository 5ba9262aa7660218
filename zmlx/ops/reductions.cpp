// zmlx/ops/reductions.cpp: one number a row: sum, mean, max, min, logsumexp.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

using cpu::Reduction;

struct Row {
  const char* name;
  Reduction what;
  const char* doc;
  mx::array (*reference)(const mx::array& x);
  int64_t least; // elements that a row must have
};

const Row rows[] = {
    {"sum", Reduction::sum, "The sum of each row", [](auto& x) { return mx::sum(x, -1); }, 0},
    {"mean", Reduction::mean, "The mean of each row", [](auto& x) { return mx::mean(x, -1); }, 1},
    {"max",
     Reduction::max,
     "The largest element of each row, NaN if there is one",
     [](auto& x) { return mx::max(x, -1); },
     1},
    {"min",
     Reduction::min,
     "The smallest element of each row, NaN if there is one",
     [](auto& x) { return mx::min(x, -1); },
     1},
    {"logsumexp",
     Reduction::logsumexp,
     "log(sum(exp(x))) of each row, without overflow",
     [](auto& x) { return x.size() ? mx::logsumexp(x, -1) : mx::sum(x, -1); },
     1},
};

Case example(std::string name, mx::Shape shape) {
  return {
      std::move(name),
      [shape](mx::Dtype dtype) { return Arrays{random_case(shape, dtype, 1, 3)}; },
      {}};
}

void add(const Row& row) {
  OpBuilder(row.name)
      .args({"x"})
      .doc(std::string(row.doc) + ": x [.., N] to [..], in x's dtype, computed in float32.")
      .function()
      .types([&row](const Types& in, const Attrs&) -> Types {
        expect_inputs(row.name, in, 1);
        expect_rows(row.name, in[0], row.least);
        auto& shape = in[0].shape;
        return {{in[0].dtype, Shape(shape.begin(), shape.end() - 1)}};
      })
      .reference([&row](const Arrays& in, const Attrs&) -> Arrays {
        return {mx::astype(row.reference(mx::astype(in[0], mx::float32)), in[0].dtype())};
      })
      .cpu([&row](const Types&, const Types&, const Attrs&) -> CpuKernel {
        return {[what = row.what](const Call& call, Member& member) {
          const Tensor& x = call.in[0];
          const auto bytes = static_cast<int64_t>(size_of(x.dtype()));
          const int64_t n = x.shape()[-1];
          const Range part = member.split(x.shape().rows());
          cpu::reduce_rows(
              what,
              x.dtype(),
              x.as<std::byte>() + part.begin * n * bytes,
              part.end - part.begin,
              n,
              call.out[0].as<std::byte>() + part.begin * bytes);
        }};
      })
      .cases({
          example("row", {4096}),
          example("rows", {37, 512}),
          example("one", {5, 1}),
          example("tail", {3, 31}),
          example("even", {2, 32}),
          example("over", {2, 2, 33}),
          example("prime", {7, 1009}),
          example("empty", {0, 8}),
      });
}

const bool registered = [] {
  for (auto& row : rows) {
    add(row);
  }
  return true;
}();

} // namespace
} // namespace zmlx
