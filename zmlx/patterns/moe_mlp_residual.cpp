// zmlx/patterns/moe_mlp_residual.cpp: the experts' sum plus a residual.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: the op's own, then the residual.
Arrays find(const Arrays& v, const Attrs& attrs) {
  return {v.back() + call("moe_mlp", {v.begin(), v.end() - 1}, attrs)[0]};
}

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

std::optional<Attrs> read(const Match& match) {
  auto& attrs = match.node("moe_mlp").attrs;
  return attrs.integer("residual", 0) ? std::nullopt : std::optional(attrs);
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("moe_mlp", v, with(attrs, {{"residual", int64_t{1}}}));
}

Arrays difference(const Arrays& v, const Attrs& attrs) {
  return {v.back() - call("moe_mlp", {v.begin(), v.end() - 1}, attrs)[0]};
}

Arrays with_result_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  auto y = call("moe_mlp", {v.begin(), v.end() - 1}, attrs)[0];
  return {v.back() + y, mx::abs(y)};
}

ZMLX_PATTERN(moe_mlp_residual)
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
