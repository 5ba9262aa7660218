// zmlx/ops/weight.h: a weight matrix among an op's inputs: one array, or codes with scales, and
// biases in mode affine.
#pragma once

#include <string>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// Arrays that make one weight in that mode: "none", "affine", "mxfp4", "mxfp8" or "nvfp4".
size_t weight_inputs(const std::string& mode);

/// The attributes mode, group_size and bits, and in product_kind() activations.
struct WeightKind {
  std::string mode;
  cpu::WeightFormat format;
  cpu::Activations activations = cpu::Activations::exact;

  /// Inputs that one weight takes.
  size_t inputs() const {
    return weight_inputs(mode);
  }
  /// Whether activations may be rounded to 8 bits.
  bool fits_int8() const;
  /// Whether the values' dtype shows in an input: scales of short floats are bytes.
  bool has_dtype() const {
    return format.bits == 0 || format.has_biases();
  }
};

/// Throws std::invalid_argument for attributes that MLX does not know.
WeightKind weight_kind(const char* op, const Attrs& attrs);
/// The same for an op that may round its activations: the attribute activations, "exact" (the
/// default) or "int8", for weights that fit it (see kernel/cpu/int8.h).
WeightKind product_kind(const char* op, const Attrs& attrs);

/// Checks the weight at in[at]: [n, k], or [experts, n, k], with everything but codes, and scales
/// that are bytes, of `dtype`.
/// Returns its shape as if it were dense.
Shape expect_weight(
    const char* op,
    const std::string& name,
    const Types& in,
    size_t at,
    const WeightKind& kind,
    Dtype dtype,
    int rank);

/// x @ weight.T in MLX. With int8 activations those are rounded first, in float32; gradients are
/// those of activations that are not rounded.
mx::array weight_matmul(const mx::array& x, const Arrays& in, size_t at, const WeightKind& kind);
/// The same for the experts of a stack that `indices` name.
mx::array weight_gather_matmul(
    const mx::array& x,
    const Arrays& in,
    size_t at,
    const mx::array& indices,
    const WeightKind& kind);

/// The weight at call.in[at] for a kernel.
cpu::Weight weight_at(const Call& call, size_t at, const WeightKind& kind);

/// The inputs for a random weight of that dense shape, for cases. Its products with normal
/// activations are about 1.
void push_random_weight(
    Arrays& in,
    mx::Shape shape,
    const WeightKind& kind,
    mx::Dtype dtype,
    uint64_t seed);

/// Attributes mode, group_size, bits for cases; 0 bits: dense.
Attrs weight_attrs(int bits, int group_size, Attrs more = {});
/// The same for a mode of short floats, which has but one group_size and bits.
Attrs weight_attrs(const char* mode, Attrs more = {});

} // namespace zmlx
