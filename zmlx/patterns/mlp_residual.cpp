// zmlx/patterns/mlp_residual.cpp: an MLP plus a residual.
#include "zmlx/patterns/residual.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: the op's own, then the residual.
std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t norm : {0, 1}) {
      Arrays in{example_array({2, 3, 32})};
      if (norm) {
        in.push_back(example_array({32}));
      }
      in = join(
          {in,
           example_weight(64, 32, format),
           example_weight(64, 32, format),
           example_weight(32, 64, format),
           {example_array({2, 3, 32})}});
      Attrs attrs = with(format, {{"activation", "silu"}});
      if (norm) {
        attrs = with(attrs, {{"norm", norm}, {"eps", 1e-5}});
      }
      examples.push_back({format.text("mode") + (norm ? ", norm" : ""), in, attrs});
    }
  }
  return examples;
}

ZMLX_PATTERN(mlp_residual)
    .stage(4)
    .find(plus_residual("mlp"))
    .fires(fires)
    .attrs(without_residual("mlp"))
    .put(with_residual("mlp"))
    .keeps("a difference", residual_less("mlp"), [] { return fires()[0]; })
    .keeps("the op's own result is used elsewhere", residual_and_result("mlp"), [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
