// zmlx/ops/resize_bilinear.cpp: images of another size by linear interpolation.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/resize_bilinear.cpp"
#include <algorithm>
#include <utility>
#include <vector>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_RESIZE_BILINEAR_CPP_
#define ZMLX_OPS_RESIZE_BILINEAR_CPP_
namespace zmlx {
namespace {

/// Between which two pixels an output lies, and how near to the second.
struct Between {
  int64_t low;
  int64_t high;
  float share;
};

/// One of the two spatial axes.
struct ResizeAxis {
  int64_t in;
  int64_t out;
  bool align_corners;

  Between at(int64_t o) const {
    double place;
    if (align_corners) {
      place = out > 1 ? static_cast<double>(o * (in - 1)) / static_cast<double>(out - 1) : 0;
    } else {
      place =
          (static_cast<double>(o) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
    }
    place = std::clamp(place, 0.0, static_cast<double>(in - 1));
    const auto low = static_cast<int64_t>(place);
    return {low, std::min(low + 1, in - 1), static_cast<float>(place - static_cast<double>(low))};
  }
};

/// Where each output of an axis lies.
std::vector<Between> places(const ResizeAxis& axis) {
  std::vector<Between> list;
  for (int64_t o = 0; o < axis.out; ++o) {
    list.push_back(axis.at(o));
  }
  return list;
}

struct Resize {
  static constexpr int64_t strip = 8192; // floats of a row that are held at a time

  ResizeAxis rows;
  ResizeAxis columns;
  int64_t channels;
};

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

HWY_INLINE Floats mix(Floats a, Floats b, Floats share) {
  return hn::MulAdd(hn::Sub(b, a), share, a);
}

/// `width` elements between two rows of an image to `to`, in float32.
template <typename T>
void mix_rows(const T* low, const T* high, float share, int64_t width, float* to) {
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(width - i);
    const Floats a = load_some(low + i, left);
    store_some(mix(a, load_some(high + i, left), hn::Set(F32(), share)), to + i, left);
  }
}

/// One output row of x's rows between `low` and `high`, in strips of columns.
template <typename T>
class Strips {
 public:
  Strips(const Resize& op, const T* low, const T* high, float share)
      : op_(op), low_(low), high_(high), share_(share) {}

  /// The pixels at `across.low` and `across.high`, which never go back.
  std::pair<const float*, const float*> at(const Between& across) {
    if (across.high >= end_) {
      begin_ = across.low;
      end_ = std::min(op_.columns.in, begin_ + Resize::strip / op_.channels);
      const int64_t first = begin_ * op_.channels;
      mix_rows(low_ + first, high_ + first, share_, (end_ - begin_) * op_.channels, row_);
    }
    return {
        row_ + (across.low - begin_) * op_.channels, row_ + (across.high - begin_) * op_.channels};
  }

 private:
  const Resize& op_;
  const T* low_;
  const T* high_;
  float share_;
  int64_t begin_ = 0;
  int64_t end_ = 0;
  HWY_ALIGN float row_[Resize::strip];
};

/// Output rows, one a unit.
template <typename T>
void resize_units(
    const Resize& op,
    const Between* down_at,
    const Between* across_at,
    const Call& call,
    Range units) {
  const int64_t n = op.channels;
  const int64_t width = op.columns.in * n;
  const auto step = static_cast<int64_t>(lanes());
  HWY_ALIGN float pixels[hn::MaxLanes(F32())] = {};
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const Between& down = down_at[unit % op.rows.out];
    const T* x = call.in[0].as<T>() + unit / op.rows.out * op.rows.in * width;
    Strips<T> row(op, x + down.low * width, x + down.high * width, down.share);
    T* out = call.out[0].as<T>() + unit * op.columns.out * n;
    int64_t filled = 0;
    for (int64_t o = 0; o < op.columns.out; ++o) {
      const Between& across = across_at[o];
      const auto [low, high] = row.at(across);
      if (n >= step) {
        const Floats share = hn::Set(F32(), across.share);
        for (int64_t c = 0; c < n; c += step) {
          const size_t left = static_cast<size_t>(n - c);
          store_some(
              mix(load_some(low + c, left), load_some(high + c, left), share), out + c, left);
        }
        out += n;
        continue;
      }
      // Few channels: pixels are gathered until a vector of them can be rounded and stored.
      if (filled + n > step) {
        store_some(load(pixels), out, static_cast<size_t>(filled));
        out += filled;
        filled = 0;
      }
      for (int64_t c = 0; c < n; ++c) {
        pixels[filled++] = low[c] + (high[c] - low[c]) * across.share;
      }
    }
    store_some(load(pixels), out, static_cast<size_t>(filled));
  }
}

void resize_kernel(
    const Resize& op,
    const Between* down,
    const Between* across,
    const Call& call,
    Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return resize_units<hwy::float16_t>(op, down, across, call, units);
    case Dtype::bf16:
      return resize_units<hwy::bfloat16_t>(op, down, across, call, units);
    default:
      return resize_units<float>(op, down, across, call, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(resize_kernel);

namespace {

constexpr const char* name = "resize_bilinear";

/// Needs an input of the right rank.
Resize settings(const Types& in, const Attrs& attrs) {
  auto& shape = attrs.list("shape");
  const bool corners = attrs.integer("align_corners", 0) != 0;
  const Shape& x = in[0].shape;
  return {{x[1], shape[0], corners}, {x[2], shape[1], corners}, x[3]};
}

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 1);
  expect_floating(name, "x", in[0]);
  expect_rank(name, "x", in[0], 4);
  auto& shape = attrs.list("shape");
  if (shape.size() != 2 || shape[0] < 0 || shape[1] < 0) {
    fail(
        name,
        "output_shape must be a height and a width but got ",
        to_string(Shape(shape.begin(), shape.end())),
        ".");
  }
  if (shape[0] * shape[1] > 0 && in[0].shape[1] * in[0].shape[2] == 0) {
    fail(name, "x must have pixels but got ", to_string(in[0]), ".");
  }
  return {{in[0].dtype, {in[0].shape[0], shape[0], shape[1], in[0].shape[3]}}};
}

/// x with `axis` resized.
mx::array resized(const mx::array& x, int axis, const ResizeAxis& to) {
  std::vector<int32_t> low;
  std::vector<int32_t> high;
  std::vector<float> share;
  for (auto& at : places(to)) {
    low.push_back(static_cast<int32_t>(at.low));
    high.push_back(static_cast<int32_t>(at.high));
    share.push_back(at.share);
  }
  const auto n = static_cast<int>(to.out);
  mx::Shape along(x.ndim(), 1);
  along[static_cast<size_t>(axis)] = n;
  auto a = mx::take(x, mx::array(low.data(), {n}, mx::int32), axis);
  auto b = mx::take(x, mx::array(high.data(), {n}, mx::int32), axis);
  return a + (b - a) * mx::array(share.data(), along, mx::float32);
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto& x = in[0];
  const auto op = settings({{Dtype::f32, Shape(x.shape().begin(), x.shape().end())}}, attrs);
  if (op.rows.out * op.columns.out == 0) {
    return {mx::zeros(
        {x.shape(0), static_cast<int>(op.rows.out), static_cast<int>(op.columns.out), x.shape(3)},
        x.dtype())};
  }
  auto y = resized(resized(mx::astype(x, mx::float32), 1, op.rows), 2, op.columns);
  return {mx::astype(y, x.dtype())};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const auto op = settings(in, attrs);
  if (2 * op.channels > Resize::strip) {
    return {};
  }
  return {
      [op, down = places(op.rows), across = places(op.columns)](const Call& call, Member& member) {
        HWY_DYNAMIC_DISPATCH(resize_kernel)
        (op, down.data(), across.data(), call, member.split(call.in[0].shape()[0] * op.rows.out));
      }};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device&) {
  const auto op = settings(in, attrs);
  const Shape& y = out[0].shape;
  if (!cuda::countable({y[0], y[1], y[2], y[3], op.rows.in, op.columns.in}) ||
      !cuda::countable({(y.size() + 255) / 256})) {
    return {};
  }
  auto launch = cuda::thread_a_unit(
      "resize.cuh",
      "resize_bilinear<" + cuda::text_of(in[0].dtype) + ", " +
          cuda::text_of(op.rows.align_corners) + ">",
      y.size());
  launch.arguments = {
      cuda::in(0),
      cuda::out(0),
      cuda::i32(y[0]),
      cuda::i32(op.rows.in),
      cuda::i32(op.columns.in),
      cuda::i32(y[1]),
      cuda::i32(y[2]),
      cuda::i32(y[3])};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape x, std::vector<int64_t> to, bool corners = false) {
  return {
      std::move(label),
      [x](mx::Dtype dtype) { return Arrays{random_case(x, dtype, 1)}; },
      {{"shape", to}, {"align_corners", int64_t{corners}}}};
}

} // namespace

ZMLX_OP(resize_bilinear)
    .args({"x"})
    .doc(
        "x [N, H, W, C] to [N, h, w, C] for shape (h, w): each pixel a mean of the four nearest of x, "
        "weighed by distance, in float32. Centres of pixels lie at half numbers; align_corners=1: the "
        "corners' centres stay.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("larger", {2, 17, 13, 3}, {33, 31}),
        example("smaller", {1, 32, 31, 33}, {7, 11}),
        example("corners", {1, 9, 10, 16}, {17, 5}, true),
        example("same", {1, 5, 7, 4}, {5, 7}),
        example("one pixel", {1, 1, 1, 1}, {3, 2}),
        example("to one pixel", {1, 8, 8, 5}, {1, 1}, true),
        example("empty", {0, 4, 4, 3}, {8, 8}),
        example("to nothing", {1, 4, 4, 3}, {0, 8}),
    });

} // namespace zmlx
#endif
