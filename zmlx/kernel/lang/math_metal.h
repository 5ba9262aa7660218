// zmlx/kernel/lang/math_metal.h: what math.h builds on, in Metal's language, behind MLX's header.

#define ZMLX_INLINE static inline
#define ZMLX_INFINITY INFINITY
#define ZMLX_NAN NAN
#define ZMLX_FMA(a, b, c) metal::fma(a, b, c)
#define ZMLX_ABS(x) metal::fabs(x)
#define ZMLX_FLOOR(x) metal::floor(x)
#define ZMLX_RINT(x) metal::rint(x)
#define ZMLX_COPYSIGN(x, y) metal::copysign(x, y)
#define ZMLX_FMOD(x, y) metal::fmod(x, y)
#define ZMLX_POW(x, y) metal::precise::pow(x, y)

ZMLX_INLINE uint32_t bits_of(float x) {
  return as_type<uint32_t>(x);
}
ZMLX_INLINE float float_of(uint32_t x) {
  return as_type<float>(x);
}
