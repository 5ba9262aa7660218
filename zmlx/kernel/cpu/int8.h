// zmlx/kernel/cpu/int8.h: activations as 8-bit integers: which weights take them, and how a group
// is rounded.
#pragma once

#include <cmath>
#include <cstdint>

#include "zmlx/kernel/cpu/matmul.h"

namespace zmlx::cpu {

// A weight's group of activations x becomes integers q = round(x * (127 / largest |x|)), ties to
// even, and one float32 scale, largest |x| / 127: symmetric dynamic quantisation. All kernels do it
// in float32, so their integers are the same.
inline constexpr float int8_largest = 127;
/// Groups whose largest magnitude is below this become zeros: the reciprocal stays finite.
inline constexpr float int8_least = 1e-30f;

/// Whether a weight's codes are integers of 8 bits, or halves of such ones: all but e4m3 and dense
/// weights.
constexpr bool fits_int8(WeightFormat format) {
  return format.bits != 0 && format.mode != Quantisation::mxfp8;
}

/// What a group's values are multiplied by, and what its integers stand for.
struct Int8Scale {
  float inverse; // 0: all integers are 0
  float scale; // NaN where the group has a NaN or an infinity
};

inline Int8Scale int8_scale(float largest) {
  if (!(largest <= 3.4028234e38f)) {
    return {0, NAN};
  }
  if (largest < int8_least) {
    return {0, 0};
  }
  return {int8_largest / largest, largest / int8_largest};
}

} // namespace zmlx::cpu
