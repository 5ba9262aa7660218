// zmlx/kernel/lang/math.h: what generated kernels call in every language: branch-free functions
// that compilers vectorise. Its text goes into each kernel's source, behind the language's own
// (math_cpp.h, ...).

template <typename T>
ZMLX_INLINE T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}
template <typename T>
ZMLX_INLINE T minimum(T a, T b) {
  return a < b || a != a ? a : b;
}
template <typename T>
ZMLX_INLINE T absolute(T x) {
  return x < T(0) ? T(-x) : x;
}
ZMLX_INLINE float absolute(float x) {
  return ZMLX_ABS(x);
}
template <typename T>
ZMLX_INLINE T sign_of(T x) {
  return x != x ? x : T((x > T(0)) - (x < T(0)));
}
template <typename T>
ZMLX_INLINE T complement(T x) {
  return T(~x);
}
ZMLX_INLINE bool complement(bool x) {
  return !x;
}
template <typename T>
ZMLX_INLINE T floor_divide(T a, T b) {
  // A division by zero would stop the process: it gives zero.
  T d = b == T(0) ? T(1) : b;
  T q = T(a / d);
  return b == T(0) ? T(0) : T(q - ((a % d != T(0)) && ((a < T(0)) != (d < T(0)))));
}
ZMLX_INLINE float floor_divide(float a, float b) {
  return ZMLX_FLOOR(a / b);
}
template <typename T>
ZMLX_INLINE T floor_remainder(T a, T b) {
  return b == T(0) ? T(0) : T(a - floor_divide(a, b) * b);
}
ZMLX_INLINE float floor_remainder(float a, float b) {
  float r = ZMLX_FMOD(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

/// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2.
ZMLX_INLINE float exponential_tail(float r) {
  float q = 1.991937740e-04f;
  q = ZMLX_FMA(q, r, 1.394722471e-03f);
  q = ZMLX_FMA(q, r, 8.333262643e-03f);
  q = ZMLX_FMA(q, r, 4.166625376e-02f);
  q = ZMLX_FMA(q, r, 1.666666687e-01f);
  return ZMLX_FMA(q, r, 5.000000083e-01f);
}
/// x - n ln(2), ln(2) in two parts.
ZMLX_INLINE float reduce_by_ln2(float x, float n) {
  return ZMLX_FMA(n, -1.428606765e-06f, ZMLX_FMA(n, -0.693145751953125f, x));
}
ZMLX_INLINE float power_of_2(int32_t n) {
  return float_of(static_cast<uint32_t>(n + 127) << 23);
}
ZMLX_INLINE float exponential(float x) {
  float c = x > 89.0f ? 89.0f : x < -105.0f ? -105.0f : x;
  float n = ZMLX_RINT(c * 1.44269504f);
  float r = reduce_by_ln2(c, n);
  // Two factors, as 2^n alone may not be a float.
  int32_t whole = static_cast<int32_t>(n == n ? n : 0.0f);
  int32_t half = whole >> 1;
  return ZMLX_FMA(r * r, exponential_tail(r), r + 1.0f) * power_of_2(half) *
      power_of_2(whole - half);
}
ZMLX_INLINE float exponential_minus_1(float x) {
  float c = x > 88.0f ? 88.0f : x < -30.0f ? -30.0f : x;
  float n = ZMLX_RINT(c * 1.44269504f);
  float r = reduce_by_ln2(c, n);
  int32_t whole = static_cast<int32_t>(n == n ? n : 0.0f);
  float scale = power_of_2(whole);
  float y = ZMLX_FMA(ZMLX_FMA(r * r, exponential_tail(r), r), scale, scale - 1.0f);
  y = x == 0.0f ? x : y;
  return x > 88.0f ? exponential(x) : y;
}
ZMLX_INLINE float logarithm(float x) {
  bool tiny = x < 1.17549435e-38f;
  uint32_t bits = bits_of(tiny ? x * 8388608.0f : x);
  // The exponent is taken so that the mantissa lies around 1.
  uint32_t shifted = bits - 0x3F3504F3u;
  int32_t e = static_cast<int32_t>(shifted) >> 23;
  float f = float_of((shifted & 0x7FFFFFu) + 0x3F3504F3u) - 1.0f;
  float n = static_cast<float>(e) - (tiny ? 23.0f : 0.0f);
  float p = 6.915389064e-02f;
  p = ZMLX_FMA(p, f, -1.178970725e-01f);
  p = ZMLX_FMA(p, f, 1.187290981e-01f);
  p = ZMLX_FMA(p, f, -1.238436299e-01f);
  p = ZMLX_FMA(p, f, 1.421867028e-01f);
  p = ZMLX_FMA(p, f, -1.666925027e-01f);
  p = ZMLX_FMA(p, f, 2.000222588e-01f);
  p = ZMLX_FMA(p, f, -2.499998660e-01f);
  p = ZMLX_FMA(p, f, 3.333331045e-01f);
  float f2 = f * f;
  float y = ZMLX_FMA(p, f2 * f, n * 1.428606765e-06f);
  y = ZMLX_FMA(f2, -0.5f, y) + f;
  y = ZMLX_FMA(n, 0.693145751953125f, y);
  y = x == ZMLX_INFINITY ? x : y;
  return x > 0.0f ? y : x == 0.0f ? -ZMLX_INFINITY : ZMLX_NAN;
}
ZMLX_INLINE float logarithm_1_plus(float x) {
  float u = 1.0f + x;
  float lost = (x - (u - 1.0f)) / u;
  float y = logarithm(u);
  y = u > 0.0f && u < ZMLX_INFINITY ? y + lost : y;
  return u == 1.0f ? x : y;
}
ZMLX_INLINE float logistic(float x) {
  float e = exponential(-ZMLX_ABS(x));
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}
ZMLX_INLINE float hyperbolic_tangent(float x) {
  float magnitude = ZMLX_ABS(x);
  float e = exponential_minus_1(2.0f * (magnitude > 10.0f ? 10.0f : magnitude));
  float y = ZMLX_COPYSIGN(e / (e + 2.0f), x);
  return x != x ? x : y;
}
ZMLX_INLINE float error_function(float x) {
  float a = ZMLX_ABS(x);
  float t = a > 1.0f ? 1.0f : a * a;
  float p = 7.889119526e-05f;
  p = ZMLX_FMA(p, t, -8.020841278e-04f);
  p = ZMLX_FMA(p, t, 5.189535339e-03f);
  p = ZMLX_FMA(p, t, -2.685444459e-02f);
  p = ZMLX_FMA(p, t, 1.128360018e-01f);
  p = ZMLX_FMA(p, t, -3.761262714e-01f);
  p = ZMLX_FMA(p, t, 1.128379166e+00f);
  float u = (a > 4.0f ? 4.0f : a) - 2.5f;
  float q = -2.168650929e-05f;
  q = ZMLX_FMA(q, u, 6.181847420e-05f);
  q = ZMLX_FMA(q, u, -4.309107755e-04f);
  q = ZMLX_FMA(q, u, 2.166527640e-03f);
  q = ZMLX_FMA(q, u, -1.085349667e-02f);
  q = ZMLX_FMA(q, u, -9.438918395e-01f);
  q = ZMLX_FMA(q, u, -5.352680614e+00f);
  q = ZMLX_FMA(q, u, -7.806815304e+00f);
  float y = a < 1.0f ? a * p : 1.0f - exponential(q);
  return x != x ? x : ZMLX_COPYSIGN(y, x);
}

ZMLX_INLINE float power(float a, float b) {
  return ZMLX_POW(a, b);
}
template <typename T>
ZMLX_INLINE T power(T a, T b) {
  T y = 1;
  for (; b > T(0); b = T(b >> 1), a = T(a * a)) {
    y = b & 1 ? T(y * a) : y;
  }
  return y;
}
