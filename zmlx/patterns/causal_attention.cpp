// zmlx/patterns/causal_attention.cpp: attention under a causal mask needs the offset and no mask
// array.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: q, keys, values, offset, [positions if padded].
Arrays masked(const Arrays& v, const Attrs& attrs, int64_t tokens) {
  Attrs mask{
      {"tokens", tokens},
      {"capacity", int64_t{v[1].shape(2)}},
      {"window", attrs.integer("window")}};
  if (attrs.integer("padded")) {
    mask.set("padded", int64_t{1});
  }
  return call(
      "attention",
      {v[0], v[1], v[2], call("causal_mask", {v.begin() + 3, v.end()}, mask)[0]},
      {{"scale", attrs.real("scale")}, {"mask", "array"}});
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  return masked(v, attrs, v[0].shape(2));
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (int64_t padded : {0, 1}) {
    int batch = padded ? 2 : 1;
    Example example{
        padded ? "padded" : "window 4",
        {example_array({batch, 4, 2, 8}),
         example_array({batch, 2, 6, 8}),
         example_array({batch, 2, 6, 8}),
         mx::array(3, mx::int32)},
        {{"scale", 0.25}, {"window", int64_t{4}}, {"padded", padded}}};
    if (padded) {
      example.variables.push_back(mx::array({3, 1}, mx::int32));
    }
    examples.push_back(std::move(example));
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& attention = match.node("attention").attrs;
  return Attrs{
      {"scale", attention.real("scale")},
      {"window", match.node("causal_mask").attrs.integer("window", 0)},
      {"padded", int64_t{match.variables() == 5}}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("attention", v, with(attrs, {{"mask", "causal"}}));
}

Arrays with_mask_of_fewer_tokens(const Arrays& v, const Attrs& attrs) {
  return masked(v, attrs, 1);
}

Arrays with_mask_that_is_not_causal(const Arrays& v, const Attrs& attrs) {
  Attrs mask{
      {"tokens", int64_t{v[0].shape(2)}},
      {"capacity", int64_t{v[1].shape(2)}},
      {"window", int64_t{0}}};
  auto future = mx::logical_not(call("causal_mask", {v[3]}, mask)[0]);
  return call(
      "attention", {v[0], v[1], v[2], future}, {{"scale", attrs.real("scale")}, {"mask", "array"}});
}

ZMLX_PATTERN(causal_attention)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("one mask row for two tokens", with_mask_of_fewer_tokens, [] { return fires()[0]; })
    .keeps("a mask that is not causal", with_mask_that_is_not_causal, [] { return fires()[0]; })
    .keeps("one padded mask row", with_mask_of_fewer_tokens, [] { return fires()[1]; });

} // namespace
} // namespace zmlx
