// zmlx/patterns/mlp.cpp: gate, up, SwiGLU and down as one op.
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  auto linear = [&](const mx::array& x, size_t i) {
    Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
    return call("linear", join({{x}, weight_at(v, 1, i, attrs)}), of)[0];
  };
  return {linear(call("swiglu", {linear(v[0], 0), linear(v[0], 1)}, {})[0], 2)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    examples.push_back(
        {format.text("mode"),
         join(
             {{example_array({2, 3, 32})},
              example_weight(64, 32, format),
              example_weight(64, 32, format),
              example_weight(32, 64, format)}),
         format});
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return format_of(match.node("linear").attrs);
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("mlp", v, with(attrs, {{"activation", "silu"}}));
}

Arrays with_gate_used_twice(const Arrays& v, const Attrs& attrs) {
  auto linear = [&](const mx::array& x, size_t i) {
    Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
    return call("linear", join({{x}, weight_at(v, 1, i, attrs)}), of)[0];
  };
  auto gate = linear(v[0], 0);
  return {linear(call("swiglu", {gate, linear(v[0], 1)}, {})[0], 2), gate};
}

ZMLX_PATTERN(mlp).stage(1).find(find).fires(fires).attrs(read).put(put).keeps(
    "the gate is used elsewhere",
    with_gate_used_twice,
    [] { return fires()[0]; });

} // namespace
} // namespace zmlx
