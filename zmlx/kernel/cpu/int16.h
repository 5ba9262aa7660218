// zmlx/kernel/cpu/int16.h: activations as 16-bit integers that share a power of two in each group
// of the weight.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "zmlx/kernel/cpu/minifloat.h"

namespace zmlx::cpu {

// An integer keeps every bit of a bf16 value down to 2^-7 of its group's largest, of an f16 value
// to 2^-4, and is off by at most 2^-15 of the largest below that.

/// What a group's values are multiplied by, and what its integers stand for.
struct Int16Scale {
  float inverse; // 0: all integers are 0
  float scale; // NaN where the group has a NaN or an infinity
};

/// The scale at which the largest magnitude has 15 bits; less than 15 from where, with `headroom`
/// added to its bits, it would be a larger power of two.
inline Int16Scale int16_scale(float largest, uint32_t headroom = 0) {
  constexpr uint32_t infinity = 0x7F800000;
  const auto bits = std::bit_cast<uint32_t>(largest);
  if (bits >= infinity) {
    return {0, std::bit_cast<float>(0x7FC00000u)};
  }
  const int exponent = std::max(static_cast<int>((bits + headroom) >> 23), 15); // keeps both normal
  return {power_of_two(14 + 127 - exponent), power_of_two(exponent - 127 - 14)};
}

} // namespace zmlx::cpu
