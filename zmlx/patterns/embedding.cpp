// zmlx/patterns/embedding.cpp: rows of a table by token, dequantised where the table is quantised.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  auto rows = [&](size_t i) { return mx::take(v[i], v[0], 0); };
  if (attrs.text("mode") == "none") {
    return {rows(1)};
  }
  return {mx::dequantize(
      rows(1),
      rows(2),
      rows(3),
      static_cast<int>(attrs.integer("group_size")),
      static_cast<int>(attrs.integer("bits")),
      attrs.text("mode"))};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  auto tokens = mx::array({1, 3}, {1, 2}, mx::int32);
  examples.push_back({"unquantised", {tokens, example_array({5, 64})}, unquantised()});
  for (int64_t bits : {2, 4, 8}) {
    for (int columns : {32, 64}) {
      Attrs format{{"mode", "affine"}, {"group_size", int64_t{32}}, {"bits", bits}};
      examples.push_back(
          {std::to_string(bits) + " bits, " + std::to_string(columns) + " columns",
           join(
               {{columns == 32 ? mx::array({1}, {1, 1}, mx::int32) : tokens},
                example_weight(5, columns, format)}),
           format});
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  // Tokens are the first variable; the table has to be a weight, or this is any lookup.
  for (size_t i = 1; i < match.variables(); ++i) {
    if (match.type(i).shape.rank() != 2) {
      return {};
    }
  }
  if (match.variables() == 2) {
    return is_floating(match.type(1).dtype) ? std::optional(unquantised()) : std::nullopt;
  }
  auto bits = 32 / static_cast<int64_t>(match.node("Concatenate").inputs.size());
  auto groups = match.type(2).shape[1];
  return Attrs{
      {"mode", "affine"},
      {"group_size", match.type(1).shape[1] * 32 / bits / groups},
      {"bits", bits}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("embedding", v, attrs);
}

Arrays columns_by_token(const Arrays& v, const Attrs&) {
  return {mx::take(v[1], v[0], 1)};
}

ZMLX_PATTERN(embedding).stage(0).find(find).fires(fires).attrs(read).put(put).keeps(
    "columns of a table",
    columns_by_token,
    [] { return fires()[0]; });

} // namespace
} // namespace zmlx
