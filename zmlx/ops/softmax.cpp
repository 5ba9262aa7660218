// zmlx/ops/softmax.cpp: softmax of each row, and its logarithm.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

Case example(std::string name, mx::Shape shape, double scale = 1) {
  return {
      std::move(name),
      [shape](mx::Dtype dtype) { return Arrays{random_case(shape, dtype, 1, 4)}; },
      {{"scale", scale}}};
}

void add(const char* name, bool logarithm) {
  OpBuilder(name)
      .args({"x"})
      .doc(
          logarithm
              ? "log(softmax(scale * x)) along the last axis of x [.., N], computed in float32."
              : "softmax(scale * x) along the last axis of x [.., N]: exp(scale * x), less "
                "its largest, over its sum; computed in float32.")
      .function({{"scale", "multiplies x first", 1.0}})
      .types([name](const Types& in, const Attrs&) -> Types {
        expect_inputs(name, in, 1);
        expect_rows(name, in[0], 1);
        return {in[0]};
      })
      .reference([logarithm](const Arrays& in, const Attrs& attrs) -> Arrays {
        const auto scale = mx::array(static_cast<float>(attrs.real("scale", 1)));
        auto x = mx::astype(in[0], mx::float32) * scale;
        if (in[0].size() == 0) {
          return {in[0]};
        }
        auto y = logarithm ? x - mx::logsumexp(x, -1, true) : mx::softmax(x, -1);
        return {mx::astype(y, in[0].dtype())};
      })
      .gradient([logarithm](const Gradient& of) {
        const auto scale = mx::array(static_cast<float>(of.attrs.real("scale", 1)));
        return of.apply(
            "softmax_backward",
            {of.outputs[0], of.cotangents[0], scale},
            {{"logarithm", int64_t{logarithm}}});
      })
      .cuda(FormulaKernel{
          name,
          [logarithm](const Types&, const Attrs& attrs) -> Formula {
            return {
                logarithm ? "s = scale * x; s - row_logsumexp(s)" : "row_softmax(scale * x)",
                {{"x", 0}},
                {{"scale", attrs.real("scale", 1)}}};
          }})
      .cpu([logarithm](const Types&, const Types&, const Attrs& attrs) -> CpuKernel {
        const auto scale = static_cast<float>(attrs.real("scale", 1));
        return {[logarithm, scale](const Call& call, Member& member) {
          const Tensor& x = call.in[0];
          const int64_t n = x.shape()[-1];
          const int64_t width = n * static_cast<int64_t>(size_of(x.dtype()));
          const bool past_cache = cpu::past_cache(call.out[0], width);
          cpu::over_rows(member, x.shape().rows(), width, [&](Range part) {
            cpu::softmax_rows(
                x.dtype(),
                x.as<std::byte>() + part.begin * width,
                part.end - part.begin,
                n,
                scale,
                logarithm,
                past_cache,
                call.out[0].as<std::byte>() + part.begin * width);
          });
        }};
      })
      .cases({
          example("row", {1, 4096}),
          example("long row", {2, 5003}),
          example("scaled", {37, 512}, 0.25),
          example("negative scale", {5, 64}, -2),
          example("one", {5, 1}),
          example("tail", {3, 31}),
          example("even", {2, 32}),
          example("over", {2, 2, 33}),
          example("empty", {0, 8}),
      });
}

const bool registered = [] {
  add("softmax", false);
  add("log_softmax", true);
  return true;
}();

} // namespace
} // namespace zmlx
