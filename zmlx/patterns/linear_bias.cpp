// zmlx/patterns/linear_bias.cpp: a linear layer plus its bias.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  Arrays in(v.begin(), v.end() - 1);
  return {call("linear", in, with(attrs, {{"bias", int64_t{0}}}))[0] + v.back()};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    examples.push_back(
        {format.text("mode"),
         join({{example_array({3, 32})}, example_weight(16, 32, format), {example_array({16})}}),
         with(format, {{"outputs", int64_t{1}}, {"bias", int64_t{1}}})});
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& linear = match.node("linear").attrs;
  auto bias = match.variables() - 1;
  if (linear.integer("outputs") != 1 || linear.integer("bias", 0) || !match.is_constant(bias) ||
      match.type(bias).shape.rank() != 1) {
    return {};
  }
  return with(linear, {{"bias", int64_t{1}}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("linear", v, attrs);
}

Arrays minus_bias(const Arrays& v, const Attrs& attrs) {
  Arrays in(v.begin(), v.end() - 1);
  return {call("linear", in, with(attrs, {{"bias", int64_t{0}}}))[0] - v.back()};
}

ZMLX_PATTERN(linear_bias)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("a bias that is subtracted", minus_bias, [] { return fires()[0]; });

} // namespace
} // namespace zmlx
