// zmlx/ops/weight.cpp: checks, reference and cases of weights.
#include "zmlx/ops/weight.h"

#include <algorithm>
#include <cmath>

#include "mlx/ops.h"
#include "zmlx/ops/check.h"

namespace zmlx {

WeightKind weight_kind(const char* op, const Attrs& attrs) {
  WeightKind kind{attrs.text("mode"), {}};
  if (kind.mode == "none") {
    return kind;
  }
  if (kind.mode != "affine") {
    fail(op, "mode must be affine or none but got ", kind.mode, ".");
  }
  const int64_t bits = attrs.integer("bits");
  const int64_t group = attrs.integer("group_size");
  if (bits < 2 || bits > 8 || bits == 7) {
    fail(op, "bits must be 2, 3, 4, 5, 6 or 8 but got ", bits, ".");
  }
  if (group != 32 && group != 64 && group != 128) {
    fail(op, "group_size must be 32, 64 or 128 but got ", group, ".");
  }
  kind.format = {static_cast<int>(bits), static_cast<int>(group)};
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
  for (size_t i : {at + 1, at + 2}) {
    expect_dtype(op, (i == at + 1 ? scales : biases).c_str(), in[i], dtype);
    expect_shape(op, (i == at + 1 ? scales : biases).c_str(), in[i], groups);
  }
  return dense;
}

mx::array weight_matmul(const mx::array& x, const Arrays& in, size_t at, const WeightKind& kind) {
  if (!kind.format.bits) {
    return mx::matmul(x, mx::swapaxes(in[at], -1, -2));
  }
  auto& f = kind.format;
  return mx::quantized_matmul(
      x, in[at], in[at + 1], in[at + 2], true, f.group_size, f.bits, kind.mode);
}

cpu::Weight weight_at(const Call& call, size_t at, const WeightKind& kind) {
  if (!kind.format.bits) {
    return {call.in[at].data, nullptr, nullptr};
  }
  return {call.in[at].data, call.in[at + 1].data, call.in[at + 2].data};
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

Attrs weight_attrs(int bits, int group_size, Attrs more) {
  return more.set("mode", std::string(bits ? "affine" : "none"))
      .set("bits", int64_t{bits})
      .set("group_size", int64_t{group_size});
}

} // namespace zmlx
