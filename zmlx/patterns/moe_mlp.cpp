// zmlx/patterns/moe_mlp.cpp: gathered gate, up, SwiGLU and down of the chosen experts, and their
// weighted sum, as one op.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

mx::array gathered(
    const mx::array& x,
    const Arrays& weight,
    const mx::array& indices,
    bool sorted,
    const Attrs& attrs) {
  if (attrs.text("mode") == "none") {
    return mx::gather_mm(x, mx::swapaxes(weight[0], -1, -2), std::nullopt, indices, sorted);
  }
  QuantisedWeight w(weight, attrs);
  return mx::gather_qmm(
      x,
      w.codes,
      w.scales,
      w.biases,
      std::nullopt,
      indices,
      true,
      w.group_size,
      w.bits,
      w.mode,
      std::nullopt,
      sorted);
}

// Variables: x, indices, weights, then gate, up and down.
Arrays find(const Arrays& v, const Attrs& attrs) {
  auto &indices = v[1], &weights = v[2];
  auto x = mx::expand_dims(v[0], {-2, -3});
  auto rows = indices;
  std::optional<mx::array> back;
  bool sorted = attrs.integer("sorted") != 0;
  if (sorted) {
    auto flat = mx::flatten(indices);
    auto order = mx::argsort(flat, -1);
    back = mx::argsort(order, -1);
    auto token = mx::floor_divide(order, mx::array(indices.shape(-1), mx::uint32));
    x = mx::take(mx::flatten(x, 0, -3), token, 0);
    rows = mx::take(flat, order, 0);
  }
  auto expert = [&](const mx::array& in, size_t i) {
    return gathered(in, weight_at(v, 3, i, attrs), rows, sorted, attrs);
  };
  auto y = expert(call("swiglu", {expert(x, 0), expert(x, 1)}, {})[0], 2);
  if (sorted) {
    y = mx::unflatten(mx::take(y, *back, 0), 0, indices.shape());
  }
  return {mx::sum(mx::squeeze(y, -2) * mx::expand_dims(weights, -1), -2)};
}

std::vector<Example> fires() {
  using Shapes = std::vector<std::pair<int, int>>; // sequences, tokens of each
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t sorted : {0, 1}) {
      // A reshape vanishes with one token, or one a sequence; sorting is for many.
      for (auto [batch, tokens] : sorted ? Shapes{{1, 5}, {5, 1}} : Shapes{{1, 1}, {1, 5}}) {
        auto indices = mx::astype(mx::argsort(example_array({batch, tokens, 4}), -1), mx::uint32);
        examples.push_back(
            {format.text("mode") + (sorted ? ", sorted, " : ", ") + std::to_string(batch) + " of " +
                 std::to_string(tokens),
             join(
                 {{example_array({batch, tokens, 32}),
                   mx::slice(indices, {0, 0, 0}, {batch, tokens, 2}),
                   example_array({batch, tokens, 2})},
                  example_weight(64, 32, format, 4),
                  example_weight(64, 32, format, 4),
                  example_weight(32, 64, format, 4)}),
             with(format, {{"sorted", sorted}})});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  std::optional<Attrs> format = unquantised();
  if (match.has("GatherQMM")) {
    format = format_of(match.node("GatherQMM"));
  }
  if (!format) {
    return {};
  }
  return with(*format, {{"sorted", int64_t{match.has("ArgSort")}}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("moe_mlp", v, with(format_of(attrs), {{"activation", "silu"}}));
}

Arrays sum_over_experts_without_weights(const Arrays& v, const Attrs& attrs) {
  auto x = mx::expand_dims(v[0], {-2, -3});
  auto expert = [&](const mx::array& in, size_t i) {
    return gathered(in, weight_at(v, 3, i, attrs), v[1], false, attrs);
  };
  auto y = expert(call("swiglu", {expert(x, 0), expert(x, 1)}, {})[0], 2);
  return {mx::sum(mx::squeeze(y, -2), -2) * mx::sum(v[2])};
}

ZMLX_PATTERN(moe_mlp).stage(1).find(find).fires(fires).attrs(read).put(put).keeps(
    "a sum without weights",
    sum_over_experts_without_weights,
    [] { return fires()[0]; });

} // namespace
} // namespace zmlx
