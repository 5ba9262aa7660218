// zmlx/patterns/swiglu.cpp: silu(gate) * up.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs&) {
  return {v[0] * mx::sigmoid(v[0]) * v[1]};
}

std::vector<Example> fires() {
  return {{"float32", {example_array({3, 8}), example_array({3, 8})}, {}}};
}

std::optional<Attrs> read(const Match&) {
  return Attrs{};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("swiglu", v, attrs);
}

Arrays with_silu_used_twice(const Arrays& v, const Attrs&) {
  auto silu = v[0] * mx::sigmoid(v[0]);
  return {silu * v[1], silu};
}

ZMLX_PATTERN(swiglu)
    .stage(0)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("silu is used elsewhere", with_silu_used_twice, [] { return fires()[0]; })
    .keeps(
        "a product with no silu in it",
        [](const Arrays& v, const Attrs&) -> Arrays { return {v[0] * mx::sigmoid(v[1]) * v[0]}; },
        [] { return fires()[0]; });

} // namespace
} // namespace zmlx
