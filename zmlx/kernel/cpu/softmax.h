// zmlx/kernel/cpu/softmax.h: softmax of masked rows, gradients of softmax, and cross entropy, for
// f32, f16 and bf16, computed in float32.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// A row's mask: bool (false leaves an element out) or floating, which is added.
struct RowMask {
  const void* data = nullptr;
  Dtype dtype = Dtype::boolean;
  bool one = false; // its one element is for the whole row
};

/// softmax(scale * x + mask) of one row; zeros where nothing but -inf is left.
void masked_softmax_row(
    Dtype dtype,
    const void* x,
    RowMask mask,
    float scale,
    int64_t n,
    void* out);

/// The cotangent of x for y = softmax(scale * x), or its logarithm, and the cotangent dy of y.
void softmax_backward_rows(
    Dtype dtype,
    const void* y,
    const void* dy,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    void* dx);

/// Cross entropy of softmax(logits), one row, and a target that has 1 - smoothing at `target` and
/// shares the rest equally.
float cross_entropy_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing);

/// The logits' cotangent for the loss's cotangent `dy`.
void cross_entropy_backward_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing,
    float dy,
    void* dx);

} // namespace zmlx::cpu
