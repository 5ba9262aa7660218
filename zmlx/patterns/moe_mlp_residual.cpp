// zmlx/patterns/moe_mlp_residual.cpp: the experts' sum plus a residual.
#include "mlx/ops.h"
#include "zmlx/patterns/residual.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: the op's own, then the residual.
std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    auto indices = mx::astype(mx::argsort(example_array({1, 3, 4}), -1), mx::uint32);
    examples.push_back(
        {format.text("mode"),
         join(
             {{example_array({1, 3, 32}),
               mx::slice(indices, {0, 0, 0}, {1, 3, 2}),
               example_array({1, 3, 2})},
              example_weight(64, 32, format, 4),
              example_weight(64, 32, format, 4),
              example_weight(32, 64, format, 4),
              {example_array({1, 3, 32})}}),
         with(format, {{"activation", "silu"}})});
  }
  return examples;
}

ZMLX_PATTERN(moe_mlp_residual)
    .stage(4)
    .find(plus_residual("moe_mlp"))
    .fires(fires)
    .attrs(without_residual("moe_mlp"))
    .put(with_residual("moe_mlp"))
    .keeps("a difference", residual_less("moe_mlp"), [] { return fires()[0]; })
    .keeps("the op's own result is used elsewhere", residual_and_result("moe_mlp"), [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
