// zmlx/patterns/linear_residual.cpp: a linear layer plus a residual.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: the op's own, then the residual.
Arrays find(const Arrays& v, const Attrs& attrs) {
  return {v.back() + call("linear", {v.begin(), v.end() - 1}, attrs)[0]};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t norm : {0, 1}) {
      for (int64_t bias : {0, 1}) {
        Arrays in{example_array({2, 3, 32})};
        if (norm) {
          in.push_back(example_array({32}));
        }
        in = join({in, example_weight(16, 32, format)});
        if (bias) {
          in.push_back(example_array({16}));
        }
        in.push_back(example_array({2, 3, 16}));
        Attrs attrs = with(format, {{"outputs", int64_t{1}}, {"bias", bias}});
        if (norm) {
          attrs = with(attrs, {{"norm", norm}, {"eps", 1e-5}});
        }
        examples.push_back(
            {format.text("mode") + (norm ? ", norm" : "") + (bias ? ", bias" : ""), in, attrs});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& attrs = match.node("linear").attrs;
  return attrs.integer("residual", 0) || attrs.integer("outputs") != 1 ? std::nullopt
                                                                       : std::optional(attrs);
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("linear", v, with(attrs, {{"residual", int64_t{1}}}));
}

Arrays difference(const Arrays& v, const Attrs& attrs) {
  return {v.back() - call("linear", {v.begin(), v.end() - 1}, attrs)[0]};
}

Arrays with_result_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  auto y = call("linear", {v.begin(), v.end() - 1}, attrs)[0];
  return {v.back() + y, mx::abs(y)};
}

ZMLX_PATTERN(linear_residual)
    .stage(4)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("a difference", difference, [] { return fires()[0]; })
    .keeps("the op's own result is used elsewhere", with_result_used_elsewhere, [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
