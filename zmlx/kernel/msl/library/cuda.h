// zmlx/kernel/msl/library/cuda.h: functions of numbers in CUDA, and how its compiler is told
// things.

#define zmlx_inline __device__ __forceinline__
#define zmlx_aligned(bytes) alignas(bytes)
#define zmlx_line 0
#define zmlx_copy ::memcpy
#define zmlx_threadgroup __shared__

namespace zmlx_float {
#define one(name)                   \
  zmlx_inline float name(float x) { \
    return ::name##f(x);            \
  }
one(exp) one(exp2) one(exp10) one(expm1) one(log) one(log2) one(log10) one(log1p) one(sqrt) one(sin)
    one(cos) one(tan) one(sinpi) one(cospi) one(asin) one(acos) one(atan) one(sinh) one(cosh)
        one(tanh) one(asinh) one(acosh) one(atanh) one(floor) one(ceil) one(trunc) one(rint)
            one(round) one(fabs)
#undef one
#define two(name)                            \
  zmlx_inline float name(float x, float y) { \
    return ::name##f(x, y);                  \
  }
                two(pow) two(fmod) two(atan2) two(copysign)
#undef two
                    zmlx_inline float ldexp(float x, int n) {
  return ::ldexpf(x, n);
}
zmlx_inline float fma(float a, float b, float c) {
  return ::fmaf(a, b, c);
}
zmlx_inline int popcount(unsigned long x) {
  return ::__popcll(x);
}
zmlx_inline int clz(unsigned long x) {
  return ::__clzll(static_cast<long long>(x));
}
} // namespace zmlx_float
