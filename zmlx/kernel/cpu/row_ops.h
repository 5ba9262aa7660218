// zmlx/kernel/cpu/row_ops.h: reductions, softmax, running sums and norms along rows of f32, f16 or
// bf16, computed in float32.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

enum class Reduction : uint8_t { sum, mean, max, min, logsumexp, prod, var, std };

/// out[r] = reduction of x[r, 0..n), for `rows` rows. Maximum and minimum of a row with a NaN are
/// NaN. Variance is the sum of squared distances from the mean over n - ddof.
void reduce_rows(
    Reduction what,
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t ddof,
    void* out);

/// Where each row has its largest or smallest element: the first NaN, else the lowest index.
void arg_rows(bool largest, Dtype dtype, const void* x, int64_t rows, int64_t n, uint32_t* out);

/// softmax(scale * x) of each row, or its logarithm. `past_cache`: see cpu::past_cache.
void softmax_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    bool past_cache,
    void* out);

/// Sums from a row's begin to each element.
void cumsum_rows(Dtype dtype, const void* x, int64_t rows, int64_t n, bool past_cache, void* out);

/// out[r] = (x[r] - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be null.
void layer_norm_rows(
    Dtype dtype,
    const void* x,
    const void* weight,
    const void* bias,
    float eps,
    int64_t rows,
    int64_t n,
    void* out);

} // namespace zmlx::cpu
