// zmlx/patterns/linear.cpp: a product with a transposed weight, quantised or not.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  if (attrs.text("mode") != "none") {
    QuantisedWeight w(weight_at(v, 1, 0, attrs), attrs);
    return {mx::quantized_matmul(
        v[0], w.codes, w.scales, w.biases, true, w.group_size, w.bits, w.mode)};
  }
  auto w = mx::transpose(v[1]);
  return {attrs.integer("bias") ? mx::addmm(v[2], v[0], w) : mx::matmul(v[0], w)};
}

Attrs linear(const Attrs& format, int64_t bias) {
  return with(format, {{"outputs", int64_t{1}}, {"bias", bias}});
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    auto w = example_weight(16, 32, format);
    // MLX flattens a batch of rows before an unquantised product.
    for (auto& shape : {mx::Shape{2, 3, 32}, mx::Shape{3, 32}}) {
      auto x = example_array(shape);
      auto name = format.text("mode") + ", rank " + std::to_string(shape.size());
      examples.push_back({name, join({{x}, w}), linear(format, 0)});
      if (w.size() == 1) {
        examples.push_back(
            {name + ", bias", join({{x}, w, {example_array({16})}}), linear(format, 1)});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  if (match.has("QuantizedMatmul")) {
    auto format = format_of(match.node("QuantizedMatmul"));
    return format ? std::optional(linear(*format, 0)) : std::nullopt;
  }
  bool matrix = match.type(1).shape.rank() == 2 && is_floating(match.type(1).dtype);
  bool bias = match.has("AddMM");
  if (!matrix || (bias && match.type(2).shape.rank() != 1)) {
    return {};
  }
  return linear(unquantised(), bias);
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("linear", v, attrs);
}

Arrays product_not_transposed(const Arrays& v, const Attrs&) {
  return {mx::matmul(v[1], v[0])};
}

Arrays scaled_sum(const Arrays& v, const Attrs&) {
  return {mx::addmm(v[2], v[0], mx::transpose(v[1]), 2.0f, 1.0f)};
}

Arrays quantised_not_transposed(const Arrays& v, const Attrs&) {
  return {mx::quantized_matmul(v[0], v[1], v[2], v[3], false, 32, 4)};
}

ZMLX_PATTERN(linear)
    .stage(0)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps(
        "a weight that is not transposed",
        product_not_transposed,
        [] {
          return Example{"", {example_array({32, 4}), example_array({16, 32})}, {}};
        })
    .keeps(
        "a scaled product plus bias",
        scaled_sum,
        [] {
          return Example{
              "", {example_array({3, 32}), example_array({16, 32}), example_array({16})}, {}};
        })
    .keeps("a quantised weight that is not transposed", quantised_not_transposed, [] {
      return Example{
          "", join({{example_array({3, 16})}, example_weight(16, 32, example_formats()[0])}), {}};
    });

} // namespace
} // namespace zmlx
