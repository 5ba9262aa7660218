// zmlx/patterns/linear_residual.cpp: a linear layer plus a residual.
#include "zmlx/patterns/residual.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: the op's own, then the residual.
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

ZMLX_PATTERN(linear_residual)
    .stage(4)
    .find(plus_residual("linear"))
    .fires(fires)
    .attrs(without_residual("linear"))
    .put(with_residual("linear"))
    .keeps("a difference", residual_less("linear"), [] { return fires()[0]; })
    .keeps("the op's own result is used elsewhere", residual_and_result("linear"), [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
