// zmlx/kernel/cpu/norms.h: gradients of RMS norm and layer norm, for f32, f16 and bf16, computed in
// float32.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// A norm of rows of n elements; no weight: 1.
struct NormRows {
  bool layer; // the mean is taken off
  Dtype dtype;
  const void* weight;
  float eps;
  int64_t n;
};

/// The cotangent of x [rows, n] from that of the normalised rows. Their parts of the weight's and
/// the bias's cotangents [n] are added to dweight and dbias, where those are not null.
void norm_backward_rows(
    const NormRows& norm,
    const void* x,
    const void* dy,
    int64_t rows,
    void* dx,
    float* dweight,
    float* dbias);

} // namespace zmlx::cpu
