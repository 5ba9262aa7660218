// zmlx/ops/rope.h: what the ops with a rotary position embedding share.
#pragma once

#include "zmlx/kernel/cpu/rope.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// From attributes dims, traditional, scale, exact.
cpu::Rope rope_settings(const Attrs& attrs);

/// Throws unless `dims` elements of heads of width `width` can be rotated by `inv_freq`.
void expect_rope(const char* op, const Type& inv_freq, int64_t dims, int64_t width);

/// The first elements of x [.., D] rotated in plain MLX; cosine and sine [.., dims / 2] broadcast.
mx::array rotated_reference(
    const mx::array& x,
    const mx::array& cosine,
    const mx::array& sine,
    bool traditional);

/// x [B, H, T, D] rotated in plain MLX, cosines and sines rounded to x's dtype.
mx::array rope_reference(
    const mx::array& x,
    const mx::array& offset,
    const mx::array& inv_freq,
    const cpu::Rope& rope);

} // namespace zmlx
