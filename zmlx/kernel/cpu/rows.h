// zmlx/kernel/cpu/rows.h: what ops do to one row around a matmul: convert, round, normalise,
// activate, add.
#pragma once

#include <cstdint>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// to = float32(from), for dtypes f32, f16, bf16.
void load_row(Dtype dtype, const void* from, float* to, int64_t n);
/// to = from rounded to dtype, ties to even.
void store_row(Dtype dtype, const float* from, void* to, int64_t n);
/// x rounded to dtype and back, in place.
void round_row(Dtype dtype, float* x, int64_t n);
/// out = round(x * rsqrt(mean(x^2) + eps)) * weight, in dtype; the mean in float32. No weight: 1.
void rms_norm_row(Dtype dtype, const void* x, const void* weight, float eps, void* out, int64_t n);
/// out = silu(gate) * up in float32, in place of gate. With `exact`, gate and up were rounded to
/// dtype, and the sigmoid, the product with gate and the result are rounded too.
void swiglu_row(Dtype dtype, float* gate, const float* up, int64_t n, bool exact);
/// x *= scale.
void scale_row(float scale, float* x, int64_t n);
/// acc += scale * x.
void axpy_row(float scale, const float* x, float* acc, int64_t n);

/// Elements [first, first + n) of a quantised weight taken as one long row, in float32; `first` is
/// a multiple of 8.
void dequantise(
    Dtype dtype,
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to);

} // namespace zmlx::cpu
