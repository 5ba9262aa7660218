// zmlx/patterns/rms_norm.cpp: RMS norm as MLX decomposes it where there is no kernel.
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Arrays find(const Arrays& v, const Attrs& attrs) {
  return {mx::fast::rms_norm(v[0], v[1], static_cast<float>(attrs.real("eps")))};
}

std::vector<Example> fires() {
  Attrs attrs{{"eps", 1e-5}};
  return {
      {"float32", {example_array({2, 8}), example_array({8})}, attrs},
      {"bfloat16", {example_array({2, 8}, mx::bfloat16), example_array({8}, mx::bfloat16)}, attrs}};
}

std::optional<Attrs> read(const Match& match) {
  return Attrs{{"eps", match.scalar(1)}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("rms_norm", v, attrs);
}

Example on() {
  return fires()[0];
}

Arrays over_another_axis(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0]), 0, true);
  return {v[0] * mx::rsqrt(mean + mx::array(1e-5f)) * v[1]};
}

Arrays over_both_axes(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0]), true);
  return {v[0] * mx::rsqrt(mean + mx::array(1e-5f)) * v[1]};
}

Arrays with_epsilon_after_the_root(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0]), -1, true);
  return {v[0] * (mx::rsqrt(mean) + mx::array(1e-5f)) * v[1]};
}

Arrays with_an_epsilon_for_each_row(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0]), -1, true);
  auto eps = mx::full({v[0].shape(0), 1}, 1e-5f) * mx::sum(v[1]);
  return {v[0] * mx::rsqrt(mean + eps) * v[1]};
}

Arrays with_inner_value_used_twice(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0]), -1, true);
  auto unit = v[0] * mx::rsqrt(mean + mx::array(1e-5f));
  return {unit * v[1], unit};
}

Arrays with_variance_of_another_array(const Arrays& v, const Attrs&) {
  auto mean = mx::mean(mx::square(v[0] + v[1]), -1, true);
  return {v[0] * mx::rsqrt(mean + mx::array(1e-5f)) * v[1]};
}

ZMLX_PATTERN(rms_norm)
    .stage(0)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("mean over another axis", over_another_axis, on)
    .keeps("mean over both axes", over_both_axes, on)
    .keeps("an epsilon outside the root", with_epsilon_after_the_root, on)
    .keeps("an epsilon for each row", with_an_epsilon_for_each_row, on)
    .keeps("the value before the weight is used elsewhere", with_inner_value_used_twice, on)
    .keeps("the norm of another array", with_variance_of_another_array, on);

} // namespace
} // namespace zmlx
