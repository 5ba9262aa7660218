// zmlx/ops/weight.cpp: checks, reference and cases of weights.
#include "zmlx/ops/weight.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/int8.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

/// A mode of codes that are short floats.
struct FloatMode {
  const char* name;
  cpu::WeightFormat format;
};

constexpr FloatMode float_modes[] = {
    {"mxfp4", {4, 32, cpu::Quantisation::mxfp4}},
    {"mxfp8", {8, 32, cpu::Quantisation::mxfp8}},
    {"nvfp4", {4, 16, cpu::Quantisation::nvfp4}}};

/// The biases, where the mode has them.
std::optional<mx::array> biases_of(const Arrays& in, size_t at, const WeightKind& kind) {
  return kind.format.has_biases() ? std::optional(in[at + 2]) : std::nullopt;
}

WeightKind exact(WeightKind kind) {
  kind.activations = cpu::Activations::exact;
  return kind;
}

/// x in float32 as kernel/cpu/int8.h rounds it.
mx::array rounded(const mx::array& x, const WeightKind& kind) {
  const mx::array wide = mx::astype(x, mx::float32);
  const mx::array groups = mx::unflatten(wide, -1, {-1, kind.format.group_size});
  const mx::array largest = mx::max(mx::abs(groups), -1, true);
  const mx::array is_zero = mx::less(largest, mx::array(cpu::int8_least));
  const mx::array zero(0.0f);
  const mx::array limit(cpu::int8_largest);
  const mx::array inverse = mx::where(is_zero, zero, limit / largest);
  // A NaN or an infinity makes its group NaN.
  const mx::array bad = mx::where(mx::isfinite(largest), zero, mx::array(NAN));
  const mx::array scale = mx::where(is_zero, zero, largest / limit) + bad;
  const mx::array y = mx::flatten(mx::round(groups * inverse) * scale, -2, -1);
  // The derivative of x, the value of y.
  return mx::stop_gradient(y) + (wide - mx::stop_gradient(wide));
}

} // namespace

size_t weight_inputs(const std::string& mode) {
  return mode == "none" ? 1 : mode == "affine" ? 3 : 2;
}

WeightKind weight_kind(const char* op, const Attrs& attrs) {
  WeightKind kind{attrs.text("mode"), {}};
  if (kind.mode == "none") {
    return kind;
  }
  const int64_t bits = attrs.integer("bits", 0);
  const int64_t group = attrs.integer("group_size", 0);
  for (auto& mode : float_modes) {
    if (kind.mode != mode.name) {
      continue;
    }
    kind.format = mode.format;
    if (bits != kind.format.bits || group != kind.format.group_size) {
      fail(
          op,
          "mode ",
          mode.name,
          " has bits=",
          kind.format.bits,
          " and group_size=",
          kind.format.group_size,
          " but got bits=",
          bits,
          " and group_size=",
          group,
          ".");
    }
    return kind;
  }
  if (kind.mode != "affine") {
    fail(op, "mode must be affine, mxfp4, mxfp8, nvfp4 or none but got ", kind.mode, ".");
  }
  if (bits < 2 || bits > 8 || bits == 7) {
    fail(op, "bits must be 2, 3, 4, 5, 6 or 8 but got ", bits, ".");
  }
  if (group != 32 && group != 64 && group != 128) {
    fail(op, "group_size must be 32, 64 or 128 but got ", group, ".");
  }
  kind.format = {static_cast<int>(bits), static_cast<int>(group)};
  return kind;
}

bool WeightKind::fits_int8() const {
  return cpu::fits_int8(format);
}

WeightKind product_kind(const char* op, const Attrs& attrs) {
  WeightKind kind = weight_kind(op, attrs);
  if (!attrs.has("activations") || attrs.text("activations") == "exact") {
    return kind;
  }
  if (attrs.text("activations") != "int8") {
    fail(op, "activations must be exact or int8 but got ", attrs.text("activations"), ".");
  }
  if (!kind.fits_int8()) {
    fail(
        op,
        "int8 activations need weights of mode affine, mxfp4 or nvfp4 but got ",
        kind.mode,
        ".");
  }
  kind.activations = cpu::Activations::int8;
  return kind;
}

Shape expect_weight(
    const char* op,
    const std::string& name,
    const Types& in,
    size_t at,
    const WeightKind& kind,
    Dtype dtype,
    int rank) {
  expect_rank(op, name.c_str(), in[at], rank);
  Shape dense = in[at].shape;
  if (!kind.format.bits) {
    expect_dtype(op, name.c_str(), in[at], dtype);
    return dense;
  }
  const std::string scales = name + " scales";
  const std::string biases = name + " biases";
  expect_dtype(op, name.c_str(), in[at], Dtype::u32);
  expect_rank(op, scales.c_str(), in[at + 1], rank);
  Shape groups = dense;
  groups[-1] = in[at + 1].shape[-1];
  dense[-1] = groups[-1] * kind.format.group_size;
  Shape words = dense;
  words[-1] = dense[-1] * kind.format.bits / 32;
  expect_shape(op, name.c_str(), in[at], words);
  expect_dtype(op, scales.c_str(), in[at + 1], kind.has_dtype() ? dtype : Dtype::u8);
  expect_shape(op, scales.c_str(), in[at + 1], groups);
  if (kind.format.has_biases()) {
    expect_dtype(op, biases.c_str(), in[at + 2], dtype);
    expect_shape(op, biases.c_str(), in[at + 2], groups);
  }
  return dense;
}

mx::array weight_matmul(const mx::array& x, const Arrays& in, size_t at, const WeightKind& kind) {
  if (kind.activations == cpu::Activations::int8) {
    return mx::astype(weight_matmul(rounded(x, kind), in, at, exact(kind)), x.dtype());
  }
  if (!kind.format.bits) {
    return mx::matmul(x, mx::swapaxes(in[at], -1, -2));
  }
  auto& f = kind.format;
  return mx::quantized_matmul(
      x, in[at], in[at + 1], biases_of(in, at, kind), true, f.group_size, f.bits, kind.mode);
}

mx::array weight_gather_matmul(
    const mx::array& x,
    const Arrays& in,
    size_t at,
    const mx::array& indices,
    const WeightKind& kind) {
  if (kind.activations == cpu::Activations::int8) {
    auto y = weight_gather_matmul(rounded(x, kind), in, at, indices, exact(kind));
    return mx::astype(y, x.dtype());
  }
  if (!kind.format.bits) {
    return mx::gather_mm(x, mx::swapaxes(in[at], -1, -2), std::nullopt, indices);
  }
  auto& f = kind.format;
  return mx::gather_qmm(
      x,
      in[at],
      in[at + 1],
      biases_of(in, at, kind),
      std::nullopt,
      indices,
      true,
      f.group_size,
      f.bits,
      kind.mode);
}

cpu::Weight weight_at(const Call& call, size_t at, const WeightKind& kind) {
  cpu::Weight weight{call.in[at].data, nullptr, nullptr};
  if (kind.format.bits) {
    weight.scales = call.in[at + 1].data;
  }
  if (kind.format.has_biases()) {
    weight.biases = call.in[at + 2].data;
  }
  return weight;
}

void push_random_weight(
    Arrays& in,
    mx::Shape shape,
    const WeightKind& kind,
    mx::Dtype dtype,
    uint64_t seed) {
  const float scale = 1 / std::sqrt(static_cast<float>(std::max(shape.back(), 1)));
  auto dense = random_case(shape, dtype, seed, scale);
  if (!kind.format.bits) {
    in.push_back(dense);
    return;
  }
  for (auto& part : mx::quantize(dense, kind.format.group_size, kind.format.bits, kind.mode)) {
    in.push_back(part);
  }
}

Attrs weight_attrs(const char* mode, Attrs more) {
  for (auto& known : float_modes) {
    if (known.name == std::string(mode)) {
      more.set("bits", int64_t{known.format.bits})
          .set("group_size", int64_t{known.format.group_size});
    }
  }
  return more.set("mode", std::string(mode));
}

Attrs weight_attrs(int bits, int group_size, Attrs more) {
  return more.set("mode", std::string(bits ? "affine" : "none"))
      .set("bits", int64_t{bits})
      .set("group_size", int64_t{group_size});
}

} // namespace zmlx
