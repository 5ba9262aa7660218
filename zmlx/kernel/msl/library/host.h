// zmlx/kernel/msl/library/host.h: functions of numbers on the CPU, and how its compiler is told
// things. Behind kernel/lang/math.h, which keeps its macros no longer.

#undef ZMLX_INLINE
#undef ZMLX_INFINITY
#undef ZMLX_NAN
#undef ZMLX_FMA
#undef ZMLX_ABS
#undef ZMLX_FLOOR
#undef ZMLX_RINT
#undef zmlx_copySIGN
#undef ZMLX_FMOD
#undef ZMLX_POW

#define zmlx_inline inline __attribute__((always_inline))
#define zmlx_aligned(bytes)
#define zmlx_line __builtin_LINE()
#define zmlx_copy __builtin_memcpy
#define zmlx_threadgroup static thread_local

namespace zmlx_float {
#define one(name)                   \
  zmlx_inline float name(float x) { \
    return __builtin_##name##f(x);  \
  }
one(sqrt) one(tan) one(asin) one(acos) one(atan) one(sinh) one(cosh) one(asinh) one(acosh)
    one(atanh) one(floor) one(ceil) one(trunc) one(rint) one(round) one(fabs)
#undef one
#define one(name, ours)             \
  zmlx_inline float name(float x) { \
    return zmlx_math::ours(x);      \
  }
        one(exp, exponential) one(expm1, exponential_minus_1) one(log, logarithm)
            one(log1p, logarithm_1_plus) one(sin, sine) one(cos, cosine)
                one(tanh, hyperbolic_tangent)
#undef one
#define two(name)                            \
  zmlx_inline float name(float x, float y) { \
    return __builtin_##name##f(x, y);        \
  }
                    two(pow) two(fmod) two(atan2) two(copysign)
#undef two
                        zmlx_inline float exp2(float x) {
  return __builtin_exp2f(x);
}
zmlx_inline float exp10(float x) {
  return __builtin_powf(10.0f, x);
}
zmlx_inline float log2(float x) {
  return __builtin_log2f(x);
}
zmlx_inline float log10(float x) {
  return __builtin_log10f(x);
}
zmlx_inline float ldexp(float x, int n) {
  return __builtin_ldexpf(x, n);
}
zmlx_inline float fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
zmlx_inline float sinpi(float x) {
  double y = x - 2.0 * __builtin_rint(x * 0.5);
  return static_cast<float>(__builtin_sin(y * 3.14159265358979323846));
}
zmlx_inline float cospi(float x) {
  double y = x - 2.0 * __builtin_rint(x * 0.5);
  return static_cast<float>(__builtin_cos(y * 3.14159265358979323846));
}
zmlx_inline int popcount(unsigned long x) {
  return __builtin_popcountl(x);
}
zmlx_inline int clz(unsigned long x) {
  return __builtin_clzl(x);
}
} // namespace zmlx_float
