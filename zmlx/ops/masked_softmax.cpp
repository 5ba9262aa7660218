// zmlx/ops/masked_softmax.cpp: softmax of scaled rows under a mask that broadcasts.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/softmax.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

constexpr const char* name = "masked_softmax";

Types types(const Types& in, const Attrs&) {
  if (in.size() < 2 || in.size() > 3) {
    fail(name, "expected x, mask and at most a scale but got ", in.size(), " inputs.");
  }
  auto &x = in[0], &mask = in[1];
  expect_rows(name, x, 1);
  if (mask.dtype != Dtype::boolean && mask.dtype != Dtype::f32 && mask.dtype != x.dtype) {
    const char* other = x.dtype == Dtype::f32 ? "" : name_of(x.dtype);
    fail(
        name,
        "mask must be bool",
        *other ? ", " : "",
        other,
        " or float32 but got ",
        name_of(mask.dtype),
        ".");
  }
  bool fits = mask.shape.rank() <= x.shape.rank();
  for (int i = 1; fits && i <= mask.shape.rank(); ++i) {
    fits = mask.shape[-i] == 1 || mask.shape[-i] == x.shape[-i];
  }
  if (!fits) {
    fail(
        name,
        "mask must broadcast to ",
        to_string(x.shape),
        " but got shape ",
        to_string(mask.shape),
        ".");
  }
  if (in.size() > 2) {
    expect_dtype(name, "scale", in[2], Dtype::f32);
    if (in[2].shape.size() != 1) {
      fail(name, "scale must be one number but got shape ", to_string(in[2].shape), ".");
    }
  }
  return {x};
}

mx::array scale_of(const Arrays& in) {
  return in.size() > 2 ? mx::reshape(in[2], mx::Shape{}) : mx::array(1.0f);
}

Arrays reference(const Arrays& in, const Attrs&) {
  if (in[0].size() == 0) {
    return {in[0]};
  }
  auto x = mx::astype(in[0], mx::float32) * scale_of(in);
  auto none = mx::array(-std::numeric_limits<float>::infinity());
  auto z =
      in[1].dtype() == mx::bool_ ? mx::where(in[1], x, none) : x + mx::astype(in[1], mx::float32);
  auto nothing = mx::equal(mx::max(z, -1, true), none);
  auto y = mx::softmax(mx::where(nothing, mx::array(0.0f), z), -1);
  return {mx::astype(mx::where(nothing, mx::array(0.0f), y), in[0].dtype())};
}

/// x summed over the axes along which an array of that shape was broadcast.
mx::array sum_to(const mx::array& x, const mx::Shape& shape) {
  const int extra = static_cast<int>(x.ndim() - shape.size());
  std::vector<int> axes;
  for (int i = 0; i < static_cast<int>(x.ndim()); ++i) {
    if (i < extra || shape[static_cast<size_t>(i - extra)] != x.shape(i)) {
      axes.push_back(i);
    }
  }
  return mx::reshape(axes.empty() ? x : mx::sum(x, axes), shape);
}

Arrays gradient(const Gradient& of) {
  auto& in = of.inputs;
  auto backward = [&](const mx::array& scale) {
    auto inputs = Arrays{of.outputs[0], of.cotangents[0], scale};
    return of.apply("softmax_backward", inputs, {{"logarithm", int64_t{0}}})[0];
  };
  // With respect to what softmax is taken of.
  auto inner = mx::astype(backward(mx::array(1.0f)), mx::float32);
  Arrays all{backward(scale_of(in)), mx::astype(sum_to(inner, in[1].shape()), in[1].dtype())};
  if (in.size() > 2) {
    auto zero = mx::array(0.0f);
    auto product = inner * mx::astype(in[0], mx::float32);
    // An element left out has no part in it, whatever it is.
    auto parts = mx::where(mx::equal(inner, zero), zero, product);
    all.push_back(mx::reshape(mx::sum(parts), in[2].shape()));
  }
  return all;
}

/// The element of a mask where the row `r` of an array of shape x begins.
int64_t mask_row(const Shape& x, const Shape& mask, int64_t r) {
  int64_t at = 0;
  int64_t stride = mask.rank() ? mask[-1] : 1;
  for (int i = 2; i <= mask.rank(); ++i) {
    at += mask[-i] == 1 ? 0 : r % x[-i] * stride;
    r /= x[-i];
    stride *= mask[-i];
  }
  return at;
}

CpuKernel kernel(const Types&, const Types&, const Attrs&) {
  return {[](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const Tensor& mask = call.in[1];
    const float scale = call.in.size() > 2 ? *call.in[2].as<float>() : 1;
    const int64_t n = x.shape()[-1];
    const int64_t bytes = n * static_cast<int64_t>(size_of(x.dtype()));
    const auto mask_bytes = static_cast<int64_t>(size_of(mask.dtype()));
    const bool one = mask.shape().rank() == 0 || (mask.shape()[-1] == 1 && n > 1);
    const Range part = member.split(x.shape().rows());
    for (int64_t r = part.begin; r < part.end; ++r) {
      const auto* of_row = mask.as<std::byte>() + mask_row(x.shape(), mask.shape(), r) * mask_bytes;
      cpu::masked_softmax_row(
          x.dtype(),
          x.as<std::byte>() + r * bytes,
          {of_row, mask.dtype(), one},
          scale,
          n,
          call.out[0].as<std::byte>() + r * bytes);
    }
  }};
}

Formula formula(const Types& in, const Attrs&) {
  const std::string x = in.size() > 2 ? "scale * float(x)" : "float(x)";
  const std::string z = in[1].dtype == Dtype::boolean ? "mask ? " + x + " : -inf" : x + " + mask";
  // A row of which nothing is left is zeros.
  return {
      "z = " + z +
          "; m = row_max(z); e = m == -inf ? 0 : exp(z - stop_gradient(m));"
          "m == -inf ? 0 : e / row_sum(e)",
      {{"x", 0}, {"mask", 1}, {"scale", 2}}};
}

enum class Mask { boolean, added, added_float32 };

Case example(std::string label, mx::Shape x, mx::Shape mask, Mask kind, bool scale) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto noise = random_case(mask, mx::float32, 2);
        auto bias = mx::astype(noise, kind == Mask::added ? dtype : mx::float32);
        Arrays in{
            random_case(x, dtype, 1, 3),
            kind == Mask::boolean ? mx::greater(noise, mx::array(0.2f)) : bias};
        if (scale) {
          in.push_back(mx::array({0.25f}, {1}));
        }
        return in;
      },
      {}};
}

} // namespace

ZMLX_OP(masked_softmax)
    .args({"x", "mask", "*scale"})
    .doc(
        "softmax(scale * x) along the last axis of x [.., N] under a mask that broadcasts to x: bool, "
        "where false leaves an element out, or floating (float32 or x's dtype), which is added. Rows "
        "of which nothing is left are zeros. scale: one float32, read when it runs; 1 if not given.")
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cuda(FormulaKernel{name, formula})
    .cpu(kernel)
    .cases({
        example("scores", {2, 3, 5, 64}, {5, 64}, Mask::boolean, true),
        example("per batch", {2, 3, 4, 33}, {2, 1, 1, 33}, Mask::boolean, false),
        example("long row", {2, 5003}, {5003}, Mask::added, false),
        example("added", {3, 31}, {3, 31}, Mask::added, true),
        example("added float32", {3, 4, 32}, {3, 1, 32}, Mask::added_float32, true),
        example("rows masked", {7, 16}, {7, 1}, Mask::boolean, false),
        example("one", {5, 1}, {5, 1}, Mask::boolean, false),
        example("number", {2, 9}, {}, Mask::boolean, false),
        example("empty", {0, 8}, {8}, Mask::boolean, false),
    });

} // namespace zmlx
