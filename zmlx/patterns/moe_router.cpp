// zmlx/patterns/moe_router.cpp: router logits, softmax, the k largest and their weights as one op.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

/// Indices of the k largest, last in p's order or first in that of -p.
mx::array largest(const mx::array& p, int k, bool negated) {
  auto order = negated ? mx::argpartition(-p, k - 1, -1) : mx::argpartition(p, -k, -1);
  mx::Shape start(p.ndim(), 0);
  mx::Shape end = p.shape();
  (negated ? end.back() : start.back()) = negated ? k : p.shape(-1) - k;
  return mx::slice(order, start, end);
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
  auto p = mx::softmax(call("linear", v, of)[0], std::vector<int>{-1}, true);
  auto indices = largest(p, static_cast<int>(attrs.integer("k")), attrs.integer("negated") != 0);
  auto weights = mx::take_along_axis(p, indices, -1);
  if (attrs.integer("normalize")) {
    weights = weights / mx::sum(weights, -1, true);
  }
  return {indices, weights};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t normalize : {0, 1}) {
      for (int64_t negated : {0, 1}) {
        examples.push_back(
            {format.text("mode") + (normalize ? ", normalised" : "") + (negated ? ", negated" : ""),
             join({{example_array({1, 3, 32})}, example_weight(8, 32, format)}),
             with(format, {{"k", int64_t{2}}, {"normalize", normalize}, {"negated", negated}})});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return with(
      format_of(match.node("linear").attrs),
      {{"k", match.node("Slice").outputs[0].shape[-1]},
       {"normalize", int64_t{match.has("Divide")}},
       {"negated", int64_t{match.has("Negative")}}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call(
      "moe_router",
      v,
      with(
          format_of(attrs),
          {{"k", attrs.integer("k")}, {"normalize", attrs.integer("normalize")}}));
}

Arrays softmax_that_rounds(const Arrays& v, const Attrs& attrs) {
  Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
  auto p = mx::softmax(call("linear", v, of)[0], std::vector<int>{-1}, false);
  auto indices = mx::slice(mx::argpartition(p, -2, -1), {0, 0, 6}, {1, 3, 8});
  return {indices, mx::take_along_axis(p, indices, -1)};
}

Arrays the_smallest(const Arrays& v, const Attrs& attrs) {
  Attrs of = with(format_of(attrs), {{"outputs", int64_t{1}}, {"bias", int64_t{0}}});
  auto p = mx::softmax(call("linear", v, of)[0], std::vector<int>{-1}, true);
  auto indices = mx::slice(mx::argpartition(p, 2, -1), {0, 0, 0}, {1, 3, 2});
  return {indices, mx::take_along_axis(p, indices, -1)};
}

ZMLX_PATTERN(moe_router)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("a softmax that is not precise", softmax_that_rounds, [] { return fires()[0]; })
    .keeps("the smallest instead of the largest", the_smallest, [] { return fires()[0]; });

} // namespace
} // namespace zmlx
