// zmlx/patterns/attention.cpp: scaled dot-product attention as MLX decomposes it where there is no
// kernel.
#include <cmath>

#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  auto& mask = attrs.text("mask");
  std::optional<mx::array> array;
  if (mask == "array") {
    array = v[3];
  }
  return {mx::fast::scaled_dot_product_attention(
      v[0],
      v[1],
      v[2],
      static_cast<float>(attrs.real("scale")),
      mask == "none" ? "" : mask,
      array)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  auto add = [&](int kv_heads, int tokens, const char* mask, mx::Dtype mask_dtype = mx::bool_) {
    Example example{
        "case " + std::to_string(examples.size()),
        {example_array({1, 4, tokens, 8}),
         example_array({1, kv_heads, 6, 8}),
         example_array({1, kv_heads, 6, 8})},
        {{"scale", 0.25}, {"mask", mask}}};
    if (std::string_view(mask) == "array") {
      auto array = example_array({tokens, 6});
      example.variables.push_back(mask_dtype == mx::bool_ ? array > mx::array(-3.0f) : array);
    }
    examples.push_back(std::move(example));
  };
  // One key-value head makes some reshapes vanish, one token others.
  for (int kv_heads : {4, 2, 1}) {
    add(kv_heads, 2, "none");
    add(kv_heads, 2, "array");
    add(kv_heads, 2, "array", mx::float32);
    add(kv_heads, 2, "causal");
    add(kv_heads, 1, "causal");
  }
  return examples;
}

/// 1/sqrt(width) if `scale` is that value rounded to `dtype`.
double unrounded(double scale, Dtype dtype, int64_t width) {
  auto natural = static_cast<float>(1 / std::sqrt(static_cast<double>(width)));
  float rounded = dtype == Dtype::bf16 ? static_cast<float>(mx::bfloat16_t(natural))
      : dtype == Dtype::f16            ? static_cast<float>(mx::float16_t(natural))
                                       : natural;
  return static_cast<double>(rounded) == scale ? static_cast<double>(natural) : scale;
}

std::optional<Attrs> read(const Match& match) {
  auto& q = match.type(0);
  auto* mask = match.variables() == 4 ? "array" : match.has("GreaterEqual") ? "causal" : "none";
  return Attrs{
      {"scale", unrounded(match.scalar(0), q.dtype, q.shape[-1])}, {"mask", std::string(mask)}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  auto in = v;
  if (attrs.text("mask") == "causal") {
    in.push_back(mx::array(v[1].shape(2) - v[0].shape(2), mx::int32));
  }
  return call("attention", in, attrs);
}

Arrays without_softmax(const Arrays& v, const Attrs&) {
  auto scores = mx::matmul(mx::array(0.25f) * v[0], mx::swapaxes(v[1], -1, -2));
  return {mx::matmul(mx::sigmoid(scores), v[2])};
}

Arrays with_softmax_over_queries(const Arrays& v, const Attrs&) {
  auto scores = mx::matmul(mx::array(0.25f) * v[0], mx::swapaxes(v[1], -1, -2));
  return {mx::matmul(mx::softmax(scores, std::vector<int>{-2}, true), v[2])};
}

Arrays with_scores_returned(const Arrays& v, const Attrs&) {
  auto scores = mx::matmul(mx::array(0.25f) * v[0], mx::swapaxes(v[1], -1, -2));
  return {mx::matmul(mx::softmax(scores, std::vector<int>{-1}, true), v[2]), scores};
}

Example plain() {
  return fires()[0];
}

ZMLX_PATTERN(attention)
    .stage(0)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("no softmax", without_softmax, plain)
    .keeps("softmax over the queries", with_softmax_over_queries, plain)
    .keeps("the scores are used elsewhere", with_scores_returned, plain);

} // namespace
} // namespace zmlx
