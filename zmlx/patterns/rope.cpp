// zmlx/patterns/rope.cpp: rotary position embedding as MLX decomposes it where there is no kernel.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

/// Elements [begin, end) of the last axis.
mx::array part(const mx::array& x, int begin, int end, int step = 1) {
  mx::Shape start(x.ndim(), 0);
  mx::Shape stop = x.shape();
  mx::Shape steps(x.ndim(), 1);
  start.back() = begin;
  stop.back() = end;
  steps.back() = step;
  return mx::slice(x, start, stop, steps);
}

// mx::fast::rope on x and offset, but with the inverse frequencies as a variable: a base or an
// array may be behind them.
Arrays find(const Arrays& v, const Attrs& attrs) {
  auto &x = v[0], &inv_freq = v[2];
  auto offset = v[1].size() > 1 ? mx::expand_dims(v[1], {-1, -2}) : v[1];
  int dims = static_cast<int>(attrs.integer("dims"));
  bool traditional = attrs.integer("traditional") != 0;
  auto position = (mx::arange(x.shape(-2), mx::float32) + offset) *
      mx::array(static_cast<float>(attrs.real("scale")));
  auto angle = mx::expand_dims(position, -1) * inv_freq;
  auto cos = mx::astype(mx::cos(angle), x.dtype());
  auto sin = mx::astype(mx::sin(angle), x.dtype());
  auto first = traditional ? part(x, 0, dims, 2) : part(x, 0, dims / 2);
  auto second = traditional ? part(x, 1, dims, 2) : part(x, dims / 2, dims);
  Arrays turned{first * cos - second * sin, first * sin + second * cos};
  if (traditional) {
    auto shape = x.shape();
    shape.back() = dims;
    for (auto& half : turned) {
      half = mx::expand_dims(half, -1);
    }
    turned = {mx::reshape(mx::concatenate(turned, -1), shape)};
  }
  if (dims < x.shape(-1)) {
    turned.push_back(part(x, dims, x.shape(-1)));
  }
  return {turned.size() == 1 ? turned[0] : mx::concatenate(turned, -1)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  // One offset, or one a sequence.
  for (auto& offset : {mx::array(5, mx::int32), mx::array({5, -1}, mx::int32)}) {
    int batch = static_cast<int>(offset.size());
    for (auto dtype : {mx::float32, mx::bfloat16}) {
      for (int tokens : {1, 3}) {
        for (int dims : {8, 4}) {
          for (int64_t traditional : {0, 1}) {
            examples.push_back(
                {"case " + std::to_string(examples.size()),
                 {example_array({batch, 2, tokens, 8}, dtype),
                  offset,
                  mx::abs(example_array({dims / 2}))},
                 {{"dims", int64_t{dims}}, {"traditional", traditional}, {"scale", 0.5}}});
          }
        }
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return Attrs{
      {"dims", 2 * match.type(2).shape[0]},
      {"traditional", int64_t{match.node("Slice").attrs.list("strides").back() == 2}},
      {"scale", match.scalar(0)}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("rope", v, attrs);
}

// The inverse rotation, as the gradient builds it.
Arrays inverse(const Arrays& v, const Attrs&) {
  auto &x = v[0], &inv_freq = v[2];
  auto angle = mx::expand_dims(mx::arange(x.shape(-2), mx::float32) + v[1], -1) * inv_freq;
  auto cos = mx::cos(angle), sin = mx::sin(angle);
  auto first = part(x, 0, 4), second = part(x, 4, 8);
  return {mx::concatenate({second * sin + first * cos, second * cos - first * sin}, -1)};
}

ZMLX_PATTERN(rope).stage(0).find(find).fires(fires).attrs(read).put(put).keeps(
    "the inverse rotation",
    inverse,
    [] { return fires()[4]; });

} // namespace
} // namespace zmlx
