// zmlx/ops/softmax_cross_entropy.cpp: cross entropy of softmax of each row against a class number,
// and its gradient, without the probabilities in memory.
#include <cstring>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/softmax.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/indices.h"

namespace zmlx {
namespace {

constexpr const char* name = "softmax_cross_entropy";
constexpr const char* backward = "softmax_cross_entropy_backward";

struct Loss {
  int64_t ignored;
  float smoothing;
};

Loss settings(const char* op, const Attrs& attrs) {
  const double smoothing = attrs.real("label_smoothing", 0);
  if (!(smoothing >= 0 && smoothing <= 1)) {
    fail(op, "label_smoothing must be from 0 to 1 but got ", smoothing, ".");
  }
  return {attrs.integer("ignore_index", -100), static_cast<float>(smoothing)};
}

Type loss_type(const char* op, const Types& in, const Attrs& attrs) {
  settings(op, attrs);
  auto& logits = in[0];
  expect_floating(op, "logits", logits);
  if (logits.shape.rank() == 0 || logits.shape[-1] == 0) {
    fail(op, "logits must have at least 1 class but got ", to_string(logits), ".");
  }
  expect_indices(op, "targets", in[1]);
  Type loss{Dtype::f32, Shape(logits.shape.begin(), logits.shape.end() - 1)};
  expect_shape(op, "targets", in[1], loss.shape);
  return loss;
}

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 2);
  return {loss_type(name, in, attrs)};
}

Types backward_types(const Types& in, const Attrs& attrs) {
  expect_inputs(backward, in, 3);
  expect_dtype(backward, "dy", in[2], Dtype::f32);
  expect_shape(backward, "dy", in[2], loss_type(backward, in, attrs).shape);
  return {in[0]};
}

/// Which rows are ignored, and their targets, 0 for those.
std::pair<mx::array, mx::array> read_targets(const mx::array& targets, const Loss& op) {
  auto wide = mx::astype(targets, mx::int64);
  auto ignored = mx::equal(wide, mx::array(op.ignored, mx::int64));
  return {ignored, mx::where(ignored, mx::zeros_like(wide), wide)};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(name, attrs);
  if (in[1].size() == 0) {
    return {mx::zeros(in[1].shape(), mx::float32)};
  }
  auto x = mx::astype(in[0], mx::float32);
  auto [ignored, targets] = read_targets(in[1], op);
  auto hit = mx::squeeze(mx::take_along_axis(x, mx::expand_dims(targets, -1), -1), -1);
  auto loss = mx::logsumexp(x, -1) - hit;
  if (op.smoothing > 0) {
    auto spread = mx::logsumexp(x, -1) - mx::mean(x, -1);
    loss = mx::array(1 - op.smoothing) * loss + mx::array(op.smoothing) * spread;
  }
  return {mx::where(ignored, mx::array(0.0f), loss)};
}

Arrays backward_reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(backward, attrs);
  auto x = mx::astype(in[0], mx::float32);
  auto [ignored, targets] = read_targets(in[1], op);
  auto classes = mx::arange(static_cast<double>(x.shape(-1)), mx::int64);
  auto hit = mx::astype(mx::equal(mx::expand_dims(targets, -1), classes), mx::float32);
  auto wanted =
      mx::array(1 - op.smoothing) * hit + mx::array(op.smoothing / static_cast<float>(x.shape(-1)));
  auto dx = (mx::softmax(x, -1) - wanted) * mx::expand_dims(in[2], -1);
  dx = mx::where(mx::expand_dims(ignored, -1), mx::array(0.0f), dx);
  return {mx::astype(dx, in[0].dtype())};
}

Arrays gradient(const Gradient& of) {
  auto dx = of.apply(backward, {of.inputs[0], of.inputs[1], of.cotangents[0]}, of.attrs)[0];
  return {dx, of.inputs[1]};
}

/// Calls f(row, its logits, target), the target -1 in ignored rows, for this member's rows.
template <typename F>
void each_row(const char* name, const Loss& op, const Call& call, Member& member, F&& f) {
  const Tensor& logits = call.in[0];
  const int64_t n = logits.shape()[-1];
  const Range part = member.split(logits.shape().rows());
  for (int64_t r = part.begin; r < part.end; ++r) {
    int64_t target = index_at(call.in[1], r);
    if (target == op.ignored) {
      target = -1;
    } else if (target < 0 || target >= n) {
      fail(
          name,
          "targets must be from 0 to ",
          n - 1,
          ", or ignore_index, ",
          op.ignored,
          ", but one is ",
          target,
          ".");
    }
    const int64_t at = r * n * static_cast<int64_t>(size_of(logits.dtype()));
    f(r, at, target);
  }
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[op = settings(name, attrs)](const Call& call, Member& member) {
    const Tensor& logits = call.in[0];
    auto* loss = call.out[0].as<float>();
    each_row(name, op, call, member, [&](int64_t r, int64_t at, int64_t target) {
      const auto* row = logits.as<std::byte>() + at;
      const int64_t n = logits.shape()[-1];
      loss[r] =
          target < 0 ? 0 : cpu::cross_entropy_row(logits.dtype(), row, n, target, op.smoothing);
    });
  }};
}

CpuKernel backward_kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[op = settings(backward, attrs)](const Call& call, Member& member) {
    const Tensor& logits = call.in[0];
    const Dtype dtype = logits.dtype();
    const int64_t n = logits.shape()[-1];
    each_row(backward, op, call, member, [&](int64_t r, int64_t at, int64_t target) {
      const auto* row = logits.as<std::byte>() + at;
      auto* dx = call.out[0].as<std::byte>() + at;
      if (target < 0) {
        std::memset(dx, 0, static_cast<size_t>(n) * size_of(dtype));
      } else {
        const float dy = call.in[2].as<float>()[r];
        cpu::cross_entropy_backward_row(dtype, row, n, target, op.smoothing, dy, dx);
      }
    });
  }};
}

/// Either kernel: a block a row.
cuda::Kernel launch_rows(const char* kernel, const Loss& op, const Types& in) {
  const Shape& logits = in[0].shape;
  if (!cuda::countable({logits.rows(), logits[-1]})) {
    return {};
  }
  cuda::Launch launch;
  launch.source = "cross_entropy.cuh";
  launch.kernel = std::string(kernel) + "<" + cuda::text_of(in[0].dtype) + ", " +
      cuda::index_text(in[1].dtype) + ">";
  launch.grid[0] = static_cast<uint32_t>(logits.rows());
  launch.block[0] = 256;
  for (size_t i = 0; i < in.size(); ++i) {
    launch.arguments.push_back(cuda::in(static_cast<int>(i)));
  }
  launch.arguments.insert(
      launch.arguments.end(),
      {cuda::out(0),
       cuda::extent(op.ignored),
       cuda::i32(logits[-1]),
       cuda::f32(static_cast<double>(op.smoothing))});
  return {{launch}, 0};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  return launch_rows("cross_entropy", settings(name, attrs), in);
}

cuda::Kernel
backward_cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  return launch_rows("cross_entropy_backward", settings(backward, attrs), in);
}

Case example(std::string label, mx::Shape shape, bool dy, Attrs attrs = {}) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        const mx::Shape rows(shape.begin(), shape.end() - 1);
        auto targets = mx::random::randint(0, shape.back(), rows, mx::int32, mx::random::key(3));
        Arrays in{random_case(shape, dtype, 1, 3), targets};
        if (dy) {
          in.push_back(random_case(rows, mx::float32, 4));
        }
        return in;
      },
      std::move(attrs)};
}

std::vector<Case> examples(bool dy) {
  return {
      example("vocabulary", {3, 5003}, dy),
      example("rows", {2, 37, 64}, dy, {{"label_smoothing", 0.1}}),
      example("some ignored", {37, 7}, dy, {{"ignore_index", int64_t{3}}}),
      example("row", {31}, dy),
      example("over", {5, 33}, dy, {{"label_smoothing", 1.0}}),
      example("one", {5, 1}, dy),
      example("empty", {0, 8}, dy)};
}

} // namespace

ZMLX_OP(softmax_cross_entropy)
    .args({"logits", "targets"})
    .doc(
        "logsumexp(logits) - logits[target] for each row of logits [.., N] and its class number, "
        "targets [..] (int32, uint32 or int64): the loss [..] in float32. Rows whose target is "
        "ignore_index give 0 and no gradient; any other target outside [0, N) is an error when it "
        "runs; on a GPU, which cannot raise one, its loss and gradient are NaN. label_smoothing a: the target has 1 - a, and all classes share a (Szegedy et al., "
        "2016). The gradient is one kernel too.")
    .function(
        {{"ignore_index", "the target of rows that do not count", int64_t{-100}},
         {"label_smoothing", "what all classes share, from 0 to 1", 0.0}})
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases(examples(false));

ZMLX_OP(softmax_cross_entropy_backward)
    .args({"logits", "targets", "dy"})
    .doc(
        "The logits' cotangent for the cotangent dy [..] (float32) of softmax_cross_entropy: "
        "(softmax(logits) - target) * dy, in the logits' dtype, 0 in ignored rows.")
    .types(backward_types)
    .reference(backward_reference)
    .cpu(backward_kernel)
    .cuda(backward_cuda_kernel)
    .cases(examples(true));

} // namespace zmlx
