// zmlx/ops/depthwise_conv.cpp: two-dimensional convolution of each channel by itself.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/depthwise_conv.cpp"
#include <algorithm>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_DEPTHWISE_CONV_CPP_
#define ZMLX_OPS_DEPTHWISE_CONV_CPP_
namespace zmlx {
namespace {

/// One of the two spatial axes.
struct ConvAxis {
  int64_t in;
  int64_t out;
  int64_t taps;
  int64_t stride;
  int64_t padding;

  /// Taps that fall inside for output `o`.
  Range inside(int64_t o) const {
    const int64_t first = o * stride - padding;
    return {std::max<int64_t>(0, -first), std::min(taps, in - first)};
  }
};

struct DepthwiseConv {
  ConvAxis rows;
  ConvAxis columns;
  int64_t channels;
};

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Output rows, one a unit.
template <typename T>
void depthwise_conv_rows(const DepthwiseConv& op, const Call& call, Range units) {
  const int64_t n = op.channels;
  const T* weight = call.in[1].as<T>();
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t image = unit / op.rows.out;
    const int64_t row = unit % op.rows.out;
    const Range down = op.rows.inside(row);
    const int64_t top = image * op.rows.in + row * op.rows.stride - op.rows.padding;
    for (int64_t column = 0; column < op.columns.out; ++column) {
      const Range across = op.columns.inside(column);
      const int64_t left_edge = column * op.columns.stride - op.columns.padding;
      T* out = call.out[0].as<T>() + (unit * op.columns.out + column) * n;
      for (int64_t c = 0; c < n; c += static_cast<int64_t>(lanes())) {
        const size_t left = static_cast<size_t>(n - c);
        Floats sums = hn::Zero(F32());
        for (int64_t i = down.begin; i < down.end; ++i) {
          const T* x = call.in[0].as<T>() + ((top + i) * op.columns.in + left_edge) * n + c;
          const T* w = weight + i * op.columns.taps * n + c;
          for (int64_t j = across.begin; j < across.end; ++j) {
            sums = hn::MulAdd(load_some(x + j * n, left), load_some(w + j * n, left), sums);
          }
        }
        store_some(sums, out + c, left);
      }
    }
  }
}

void depthwise_conv_kernel(const DepthwiseConv& op, const Call& call, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return depthwise_conv_rows<hwy::float16_t>(op, call, units);
    case Dtype::bf16:
      return depthwise_conv_rows<hwy::bfloat16_t>(op, call, units);
    default:
      return depthwise_conv_rows<float>(op, call, units);
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

HWY_EXPORT(depthwise_conv_kernel);

namespace {

constexpr const char* name = "depthwise_conv";

ConvAxis axis_of(const Types& in, const Attrs& attrs, int axis) {
  const auto place = static_cast<size_t>(axis);
  auto number = [&](const char* attr, int64_t least) {
    auto& list = attrs.list(attr);
    if (list.size() != 2 || list[place] < least) {
      fail(
          name,
          attr,
          " must be two numbers from ",
          least,
          " on but got ",
          list.size() == 2 ? std::to_string(list[place]) : std::to_string(list.size()) + " numbers",
          ".");
    }
    return list[place];
  };
  ConvAxis a{
      in[0].shape[1 + axis], 0, in[1].shape[axis], number("stride", 1), number("padding", 0)};
  const int64_t room = a.in + 2 * a.padding;
  if (a.taps < 1 || a.taps > room) {
    fail(
        name,
        "weight must have 1 to ",
        room,
        " taps along ",
        axis == 0 ? "rows" : "columns",
        ", the padded size of x, but got ",
        a.taps,
        ".");
  }
  a.out = (room - a.taps) / a.stride + 1;
  return a;
}

/// Needs inputs of the right ranks.
DepthwiseConv settings(const Types& in, const Attrs& attrs) {
  return {axis_of(in, attrs, 0), axis_of(in, attrs, 1), in[0].shape[3]};
}

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 2);
  expect_floating(name, "x", in[0]);
  expect_rank(name, "x", in[0], 4);
  expect_rank(name, "weight", in[1], 3);
  expect_dtype(name, "weight", in[1], in[0].dtype);
  const Shape& taps = in[1].shape;
  expect_shape(name, "weight", in[1], {taps[0], taps[1], in[0].shape[3]});
  const auto op = settings(in, attrs);
  return {{in[0].dtype, {in[0].shape[0], op.rows.out, op.columns.out, op.channels}}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto& stride = attrs.list("stride");
  auto& padding = attrs.list("padding");
  auto number = [](int64_t x) { return static_cast<int>(x); };
  const int down = number(stride[0]);
  const int across = number(stride[1]);
  const std::pair top{number(padding[0]), number(padding[0])};
  const std::pair side{number(padding[1]), number(padding[1])};
  auto x = mx::pad(mx::astype(in[0], mx::float32), {std::pair{0, 0}, top, side, std::pair{0, 0}});
  auto weight = mx::astype(in[1], mx::float32);
  const int height = (x.shape(1) - weight.shape(0)) / down + 1;
  const int width = (x.shape(2) - weight.shape(1)) / across + 1;
  auto y = mx::zeros({x.shape(0), height, width, x.shape(3)}, mx::float32);
  for (int i = 0; i < weight.shape(0); ++i) {
    for (int j = 0; j < weight.shape(1); ++j) {
      auto shifted = mx::slice(
          x,
          {0, i, j, 0},
          {x.shape(0), i + (height - 1) * down + 1, j + (width - 1) * across + 1, x.shape(3)},
          {1, down, across, 1});
      y = y + shifted * mx::take(mx::take(weight, i, 0), j, 0);
    }
  }
  return {mx::astype(y, in[0].dtype())};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  return {[op = settings(in, attrs)](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(depthwise_conv_kernel)
    (op, call, member.split(call.in[0].shape()[0] * op.rows.out));
  }};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device&) {
  const auto op = settings(in, attrs);
  const Shape& y = out[0].shape;
  const auto& [rows, columns, channels] = op;
  const int64_t far_row = rows.out * rows.stride + rows.taps;
  const int64_t far_column = columns.out * columns.stride + columns.taps;
  if (!cuda::countable({y[0], y[1], y[2], y[3], far_row, far_column}) ||
      !cuda::countable({(y.size() + 255) / 256})) {
    return {};
  }
  auto launch = cuda::thread_a_unit(
      "convolution.cuh", "depthwise_conv<" + cuda::text_of(in[0].dtype) + ">", y.size());
  launch.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::out(0),
      cuda::i32(y[0]),
      cuda::i32(rows.in),
      cuda::i32(columns.in),
      cuda::i32(rows.out),
      cuda::i32(columns.out),
      cuda::i32(channels),
      cuda::i32(rows.taps),
      cuda::i32(columns.taps),
      cuda::i32(rows.stride),
      cuda::i32(columns.stride),
      cuda::i32(rows.padding),
      cuda::i32(columns.padding)};
  return {{launch}, 0};
}

Case example(
    std::string label,
    mx::Shape x,
    mx::Shape taps,
    std::vector<int64_t> stride,
    std::vector<int64_t> padding) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        return Arrays{
            random_case(x, dtype, 1), random_case({taps[0], taps[1], x.back()}, dtype, 2)};
      },
      {{"stride", stride}, {"padding", padding}}};
}

} // namespace

ZMLX_OP(depthwise_conv)
    .args({"x", "weight"})
    .doc(
        "x [N, H, W, C] with zeros around it (padding: rows, columns), each channel convolved with its "
        "taps weight [KH, KW, C] (not flipped) at every stride-th place: [N, OH, OW, C], accumulated "
        "in float32.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("3x3", {2, 17, 19, 64}, {3, 3}, {1, 1}, {1, 1}),
        example("strides", {1, 31, 33, 7}, {5, 3}, {2, 3}, {2, 0}),
        example("even kernel", {1, 8, 9, 33}, {2, 4}, {1, 1}, {1, 2}),
        example("wide padding", {1, 2, 2, 32}, {3, 3}, {1, 1}, {3, 3}),
        example("one", {1, 1, 1, 1}, {1, 1}, {1, 1}, {0, 0}),
        example("empty", {0, 4, 4, 8}, {3, 3}, {1, 1}, {1, 1}),
    });

} // namespace zmlx
#endif
