// zmlx/kernel/cpu/swiglu.h: silu(gate) * up for rows of f32, f16 or bf16.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// out[r] = silu(gate[r]) * up[r] for rows of n elements, computed in float32. Rows of gate and up
/// begin `stride` elements apart, those of out n. `past_cache`: see cpu::past_cache.
void swiglu_rows(
    Dtype dtype,
    const void* gate,
    const void* up,
    int64_t rows,
    int64_t n,
    int64_t stride,
    bool past_cache,
    void* out);

} // namespace zmlx::cpu
