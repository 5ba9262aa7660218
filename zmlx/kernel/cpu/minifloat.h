// zmlx/kernel/cpu/minifloat.h: the short floats of quantised weights, one at a time.
#pragma once

#include <bit>
#include <cstdint>

namespace zmlx::cpu {

/// 2^e for exponents of normal float32 numbers.
constexpr float power_of_two(int e) {
  return std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23);
}

/// A code with a sign, `mantissa` bits at the bottom and its smallest normal number at 2^lowest.
constexpr float minifloat(uint32_t magnitude, int mantissa, int lowest) {
  const uint32_t exponent = magnitude >> mantissa;
  const uint32_t one = 1u << mantissa;
  const uint32_t fraction = (magnitude & (one - 1)) + (exponent ? one : 0);
  const int scale = lowest - mantissa + static_cast<int>(exponent ? exponent - 1 : 0);
  return static_cast<float>(fraction) * power_of_two(scale);
}

/// fp4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
constexpr float from_e2m1(uint32_t code) {
  const float size = minifloat(code & 7, 1, 0);
  return code & 8 ? -size : size;
}

/// fp8 up to 448; the largest magnitude is NaN.
constexpr float from_e4m3(uint32_t code) {
  const uint32_t magnitude = code & 127;
  const float size =
      magnitude == 127 ? std::bit_cast<float>(0x7FC00000u) : minifloat(magnitude, 3, -6);
  return code & 128 ? -size : size;
}

/// 2^(code - 127); 255 is infinity, as in MLX.
constexpr float from_e8m0(uint32_t code) {
  return std::bit_cast<float>(code ? code << 23 : 0x00400000u);
}

} // namespace zmlx::cpu
