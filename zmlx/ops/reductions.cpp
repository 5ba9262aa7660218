// zmlx/ops/reductions.cpp: one number a row: sum, mean, variance, max, min and others.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

using cpu::Reduction;

struct Row {
  const char* name;
  Reduction what;
  const char* doc;
  const char* formula;
  mx::array (*reference)(const mx::array& x, int ddof);
  int64_t least; // elements that a row must have
  bool has_ddof = false;
};

const Row rows[] = {
    {"sum",
     Reduction::sum,
     "The sum of each row",
     "row_sum(x)",
     [](auto& x, int) { return mx::sum(x, -1); },
     0},
    {"mean",
     Reduction::mean,
     "The mean of each row",
     "row_mean(x)",
     [](auto& x, int) { return mx::mean(x, -1); },
     1},
    {"max",
     Reduction::max,
     "The largest element of each row, NaN if there is one",
     "row_max(x)",
     [](auto& x, int) { return mx::max(x, -1); },
     1},
    {"min",
     Reduction::min,
     "The smallest element of each row, NaN if there is one",
     "row_min(x)",
     [](auto& x, int) { return mx::min(x, -1); },
     1},
    {"logsumexp",
     Reduction::logsumexp,
     "log(sum(exp(x))) of each row, without overflow",
     "row_logsumexp(x)",
     [](auto& x, int) { return x.size() ? mx::logsumexp(x, -1) : mx::sum(x, -1); },
     1},
    {"prod",
     Reduction::prod,
     "The product of each row",
     "row_prod(x)",
     [](auto& x, int) { return mx::prod(x, -1); },
     0},
    {"var",
     Reduction::var,
     "The variance of each row: the sum of squared distances from its mean, over N - ddof",
     "row_var(x) * (row_size / (row_size - ddof))",
     [](auto& x, int ddof) { return mx::var(x, -1, false, ddof); },
     1,
     true},
    {"std",
     Reduction::std,
     "The standard deviation of each row: sqrt(var(x))",
     "sqrt(row_var(x) * (row_size / (row_size - ddof)))",
     [](auto& x, int ddof) { return mx::std(x, -1, false, ddof); },
     1,
     true},
};

int64_t ddof_of(const char* name, const Attrs& attrs) {
  const int64_t ddof = attrs.integer("ddof", 0);
  if (ddof < 0) {
    fail(name, "ddof must not be negative but got ", ddof, ".");
  }
  return ddof;
}

/// Factors near one, so that products are neither huge nor tiny.
Case example(const Row& row, std::string name, mx::Shape shape, Attrs attrs = {}) {
  const bool factors = row.what == Reduction::prod;
  return {
      std::move(name),
      [shape, factors](mx::Dtype dtype) {
        auto x = random_case(shape, dtype, 1, factors ? 0.03f : 3);
        return Arrays{factors ? mx::astype(mx::array(1.0f), dtype) + x : x};
      },
      std::move(attrs)};
}

void add(const Row& row) {
  OpBuilder(row.name)
      .args({"x"})
      .doc(std::string(row.doc) + ": x [.., N] to [..], in x's dtype, computed in float32.")
      .function(
          row.has_ddof ? std::vector<Parameter>{{"ddof", "taken off N", int64_t{0}}}
                       : std::vector<Parameter>{})
      .types([&row](const Types& in, const Attrs& attrs) -> Types {
        ddof_of(row.name, attrs);
        expect_inputs(row.name, in, 1);
        expect_rows(row.name, in[0], row.least);
        auto& shape = in[0].shape;
        return {{in[0].dtype, Shape(shape.begin(), shape.end() - 1)}};
      })
      .reference([&row](const Arrays& in, const Attrs& attrs) -> Arrays {
        const auto ddof = static_cast<int>(ddof_of(row.name, attrs));
        return {mx::astype(row.reference(mx::astype(in[0], mx::float32), ddof), in[0].dtype())};
      })
      .cuda(FormulaKernel{
          row.name,
          [&row](const Types&, const Attrs& attrs) -> Formula {
            const auto ddof = static_cast<double>(ddof_of(row.name, attrs));
            return {row.formula, {{"x", 0}}, {{"ddof", ddof}}};
          }})
      .cpu([&row](const Types&, const Types&, const Attrs& attrs) -> CpuKernel {
        return {
            [what = row.what, ddof = ddof_of(row.name, attrs)](const Call& call, Member& member) {
              const Tensor& x = call.in[0];
              const auto bytes = static_cast<int64_t>(size_of(x.dtype()));
              const int64_t n = x.shape()[-1];
              cpu::over_rows(member, x.shape().rows(), n * bytes, [&](Range part) {
                cpu::reduce_rows(
                    what,
                    x.dtype(),
                    x.as<std::byte>() + part.begin * n * bytes,
                    part.end - part.begin,
                    n,
                    ddof,
                    call.out[0].as<std::byte>() + part.begin * bytes);
              });
            }};
      })
      .cases({
          example(row, "row", {4096}),
          example(row, "rows", {37, 512}),
          example(row, "one", {5, 1}),
          example(row, "tail", {3, 31}),
          example(row, "even", {2, 32}),
          example(row, "over", {2, 2, 33}),
          example(row, "prime", {7, 1009}),
          example(row, "empty", {0, 8}),
          example(row, "ddof", {5, 17}, row.has_ddof ? Attrs{{"ddof", int64_t{1}}} : Attrs{}),
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
