// zmlx/patterns/weights.cpp: weight formats in patterns.
#include "zmlx/patterns/weights.h"

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/ops/weight.h"

namespace zmlx {

Arrays weight_at(const Arrays& variables, size_t first, size_t i, const Attrs& attrs) {
  auto n = static_cast<std::ptrdiff_t>(weight_inputs(attrs.text("mode")));
  auto from =
      variables.begin() + static_cast<std::ptrdiff_t>(first) + static_cast<std::ptrdiff_t>(i) * n;
  return {from, from + n};
}

Attrs format_of(const Attrs& from) {
  return {
      {"mode", from.text("mode")},
      {"group_size", from.integer("group_size")},
      {"bits", from.integer("bits")}};
}

std::optional<Attrs> format_of(const Node& node) {
  if (!node.attrs.integer("transpose")) {
    return {};
  }
  return format_of(node.attrs);
}

Attrs unquantised() {
  return {{"mode", "none"}, {"group_size", int64_t{0}}, {"bits", int64_t{0}}};
}

QuantisedWeight::QuantisedWeight(const Arrays& weight, const Attrs& attrs)
    : codes(weight[0]),
      scales(weight[1]),
      group_size(static_cast<int>(attrs.integer("group_size"))),
      bits(static_cast<int>(attrs.integer("bits"))),
      mode(attrs.text("mode")) {
  if (weight.size() > 2) {
    biases = weight[2];
  }
}

Attrs with(Attrs from, const Attrs& more) {
  for (auto& [name, value] : more) {
    from.set(name, value);
  }
  return from;
}

Arrays join(std::initializer_list<Arrays> parts) {
  Arrays all;
  for (auto& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

std::vector<Attrs> example_formats() {
  return {
      {{"mode", "affine"}, {"group_size", int64_t{32}}, {"bits", int64_t{4}}},
      {{"mode", "mxfp4"}, {"group_size", int64_t{32}}, {"bits", int64_t{4}}},
      unquantised()};
}

mx::array example_array(mx::Shape shape, mx::Dtype dtype) {
  return mx::random::normal(shape, dtype);
}

Arrays example_weight(int rows, int columns, const Attrs& attrs, int experts) {
  auto shape = experts ? mx::Shape{experts, rows, columns} : mx::Shape{rows, columns};
  auto w = mx::random::normal(shape);
  if (attrs.text("mode") == "none") {
    return {w};
  }
  return mx::quantize(
      w,
      static_cast<int>(attrs.integer("group_size")),
      static_cast<int>(attrs.integer("bits")),
      attrs.text("mode"));
}

} // namespace zmlx
