// zmlx/patterns/moe_router_chosen.cpp: a router whose softmax runs over the chosen logits alone.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

mx::array logits_of(const Arrays& v, const Attrs& attrs) {
  Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
  return call("linear", v, of)[0];
}

// A softmax over some of the logits is that over all of them, divided by its sum over those.
Arrays find(const Arrays& v, const Attrs& attrs) {
  auto logits = logits_of(v, attrs);
  int k = static_cast<int>(attrs.integer("k"));
  auto end = logits.shape();
  end.back() = k;
  auto indices = mx::slice(mx::argpartition(-logits, k - 1, -1), mx::Shape(logits.ndim(), 0), end);
  auto chosen = mx::take_along_axis(logits, indices, -1);
  return {indices, mx::softmax(chosen, std::vector<int>{-1}, true)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    examples.push_back(
        {format.text("mode"),
         join({{example_array({1, 3, 32})}, example_weight(8, 32, format)}),
         with(format, {{"k", int64_t{2}}})});
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return with(
      format_of(match.node("linear").attrs), {{"k", match.node("Slice").outputs[0].shape[-1]}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("moe_router", v, with(attrs, {{"normalize", int64_t{1}}}));
}

Arrays chosen_by_other_logits(const Arrays& v, const Attrs& attrs) {
  auto logits = logits_of(v, attrs);
  auto indices = mx::slice(mx::argpartition(-mx::abs(logits), 1, -1), {0, 0, 0}, {1, 3, 2});
  auto chosen = mx::take_along_axis(logits, indices, -1);
  return {indices, mx::softmax(chosen, std::vector<int>{-1}, true)};
}

ZMLX_PATTERN(moe_router_chosen)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("experts chosen by other values", chosen_by_other_logits, [] { return fires()[0]; });

} // namespace
} // namespace zmlx
