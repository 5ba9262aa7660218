// zmlx/kernel/lang/math_cuda.h: what math.h builds on, in CUDA, behind kernel/cuda/base.cuh.

#define ZMLX_INLINE static __device__ __forceinline__
#define ZMLX_INFINITY __int_as_float(0x7F800000)
#define ZMLX_NAN __int_as_float(0x7FC00000)
#define ZMLX_FMA(a, b, c) fmaf(a, b, c)
#define ZMLX_ABS(x) fabsf(x)
#define ZMLX_FLOOR(x) floorf(x)
#define ZMLX_RINT(x) rintf(x)
#define ZMLX_COPYSIGN(x, y) copysignf(x, y)
#define ZMLX_FMOD(x, y) fmodf(x, y)
#define ZMLX_POW(x, y) powf(x, y)

ZMLX_INLINE uint32_t bits_of(float x) {
  return __float_as_uint(x);
}
ZMLX_INLINE float float_of(uint32_t x) {
  return __uint_as_float(x);
}

template <typename T>
ZMLX_INLINE T load(T x) {
  return x;
}
ZMLX_INLINE float load(bf16 x) {
  return to_float(x);
}
ZMLX_INLINE float load(f16 x) {
  return to_float(x);
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
    return from_float<bf16>(x);
  }
};
template <>
struct Storage<f16> {
  ZMLX_INLINE f16 round(float x) {
    return from_float<f16>(x);
  }
};
