// zmlx/kernel/cpu/rope.h: the settings of a rotary position embedding.
#pragma once

#include <cstdint>

namespace zmlx::cpu {

/// The most elements of a head that the kernels rotate.
inline constexpr int64_t max_rope_dims = 512;

struct Rope {
  int64_t dims = 0; // leading elements of a head that are rotated
  bool traditional = false; // pairs (2i, 2i + 1) instead of (i, i + dims / 2)
  float scale = 1; // of positions
  bool exact = false; // round to the dtype where MLX's own graph does
};

} // namespace zmlx::cpu
