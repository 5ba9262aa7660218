// zmlx/patterns/causal_attention.cpp: attention under a causal mask needs the offset and no mask
// array.
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  Attrs mask{
      {"tokens", int64_t{v[0].shape(2)}},
      {"capacity", int64_t{v[1].shape(2)}},
      {"window", attrs.integer("window")}};
  return call(
      "attention",
      {v[0], v[1], v[2], call("causal_mask", {v[3]}, mask)[0]},
      {{"scale", attrs.real("scale")}, {"mask", "array"}});
}

std::vector<Example> fires() {
  return {
      {"window 4",
       {example_array({1, 4, 2, 8}),
        example_array({1, 2, 6, 8}),
        example_array({1, 2, 6, 8}),
        mx::array(3, mx::int32)},
       {{"scale", 0.25}, {"window", int64_t{4}}}}};
}

std::optional<Attrs> read(const Match& match) {
  auto& attention = match.node("attention").attrs;
  return Attrs{
      {"scale", attention.real("scale")},
      {"window", match.node("causal_mask").attrs.integer("window", 0)}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("attention", v, with(attrs, {{"mask", "causal"}}));
}

Arrays with_mask_of_fewer_tokens(const Arrays& v, const Attrs& attrs) {
  Attrs mask{
      {"tokens", int64_t{1}},
      {"capacity", int64_t{v[1].shape(2)}},
      {"window", attrs.integer("window")}};
  return call(
      "attention",
      {v[0], v[1], v[2], call("causal_mask", {v[3]}, mask)[0]},
      {{"scale", attrs.real("scale")}, {"mask", "array"}});
}

ZMLX_PATTERN(causal_attention)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("one mask row for two tokens", with_mask_of_fewer_tokens, [] { return fires()[0]; });

} // namespace
} // namespace zmlx
