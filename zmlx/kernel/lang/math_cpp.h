// zmlx/kernel/lang/math_cpp.h: what math.h builds on, in C++ for GCC and Clang.

#if defined(__FMA__) || defined(__aarch64__)
#define ZMLX_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define ZMLX_FMA(a, b, c) ((a) * (b) + (c))
#endif
#define ZMLX_INLINE static inline __attribute__((always_inline))
#define ZMLX_INFINITY __builtin_inff()
#define ZMLX_NAN __builtin_nanf("")
#define ZMLX_ABS(x) __builtin_fabsf(x)
#define ZMLX_FLOOR(x) __builtin_floorf(x)
#define ZMLX_RINT(x) __builtin_rintf(x)
#define ZMLX_COPYSIGN(x, y) __builtin_copysignf(x, y)
#define ZMLX_FMOD(x, y) __builtin_fmodf(x, y)
#define ZMLX_POW(x, y) __builtin_powf(x, y)

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

ZMLX_INLINE uint32_t bits_of(float x) {
  return __builtin_bit_cast(uint32_t, x);
}
ZMLX_INLINE float float_of(uint32_t x) {
  return __builtin_bit_cast(float, x);
}

template <typename T>
ZMLX_INLINE T load(T x) {
  return x;
}
ZMLX_INLINE float load(bf16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}
ZMLX_INLINE float load(f16 x) {
  uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7FFF) << 13;
  uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  uint32_t scaled = bits_of(float_of(magnitude) * 0x1p112f);
  return float_of((magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : scaled) | sign);
}

template <typename T>
struct Storage {
  ZMLX_INLINE T round(T x) {
    return x;
  }
};
template <>
struct Storage<bf16> {
  ZMLX_INLINE bf16 round(float x) {
    uint32_t bits = bits_of(x);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(x != x ? 0x7FC0u : rounded)};
  }
};
template <>
struct Storage<f16> {
  ZMLX_INLINE f16 round(float x) {
    uint32_t bits = bits_of(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    bits &= 0x7FFFFFFFu;
    uint32_t normal = (bits - 0x37FFF001u + ((bits >> 13) & 1)) >> 13;
    // Adding a half makes the unit in the last place that of float16's smallest numbers.
    uint32_t small = bits_of(float_of(bits) + 0.5f) - 0x3F000000u;
    uint32_t half = bits < 0x38800000u ? small : bits >= 0x477FF000u ? 0x7C00u : normal;
    return {static_cast<uint16_t>((bits > 0x7F800000u ? 0x7E00u : half) | sign)};
  }
};

/// sin(x + quarter turns), computed in double precision; exact to float32 for |x| < 2^30.
ZMLX_INLINE float turned_sine(float x, int32_t quarters) {
  double n = __builtin_rint(x * 0.63661977236758134308);
  // pi / 2 in three parts, of which the first two times n are exact.
  double r = ((x - n * 1.570796012878418) - n * 3.139164164167596e-07) - n * 6.223372171896613e-14;
  bool counted = n < 1e9 && n > -1e9;
  int32_t k = static_cast<int32_t>(counted ? n : 0.0) + quarters;
  double z = r * r;
  double s = r +
      r * z *
          (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 - z / 39916800.0))));
  double c =
      1.0 + z * (-0.5 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 - z / 3628800.0))));
  double y = k & 1 ? c : s;
  return static_cast<float>(k & 2 ? -y : y);
}
ZMLX_INLINE float sine(float x) {
  return x < 0x1p30f && x > -0x1p30f ? turned_sine(x, 0) : __builtin_sinf(x);
}
ZMLX_INLINE float cosine(float x) {
  return x < 0x1p30f && x > -0x1p30f ? turned_sine(x, 1) : __builtin_cosf(x);
}
