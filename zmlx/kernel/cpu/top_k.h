// zmlx/kernel/cpu/top_k.h: the k largest of rows of f32, f16 or bf16, and of their softmax.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// The k largest of each row, the largest first; of equal ones the lower index first; NaN is larger
/// than any number.
void top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    void* values,
    uint32_t* indices);

inline constexpr int64_t most_softmax_top_k = 1024;

/// The k largest of softmax(x) of each row, as top_k_rows orders them, times scale; with
/// `normalise` over their sum. Rows have at most most_softmax_top_k elements.
void softmax_top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    bool normalise,
    float scale,
    void* weights,
    uint32_t* indices);

} // namespace zmlx::cpu
