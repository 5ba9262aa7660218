// zmlx/kernel/msl/library/functions.h: Metal's functions of numbers and vectors, behind vectors.h.
// What a machine computes itself stands in zmlx_float (host.h, cuda.h).

/// What a function of numbers gives for a T: whole numbers become float.
template <typename T>
using Floating = conditional_t<is_integral_v<T>, float, T>;
template <typename A, typename B>
using Both = typename Common<A, B>::type;
template <typename T>
constexpr bool is_float_vec_v = false;
template <typename T, int N>
constexpr bool is_float_vec_v<vec<T, N>> = is_floating_point_v<T>;

#define zmlx_function(name, expression)                         \
  template <typename T, typename = enable_if_t<is_scalar_v<T>>> \
  zmlx_inline Floating<T> name(T value) {                       \
    float x = static_cast<float>(value);                        \
    return Floating<T>(expression);                             \
  }                                                             \
  template <typename T, int N>                                  \
  zmlx_inline vec<T, N> name(const vec<T, N>& v) {              \
    return zmlx_map([](T x) { return T(name(x)); }, v);         \
  }                                                             \
  namespace precise {                                           \
  using metal::name;                                            \
  }                                                             \
  namespace fast {                                              \
  using metal::name;                                            \
  }
zmlx_function(exp, zmlx_float::exp(x)) zmlx_function(exp2, zmlx_float::exp2(x)) zmlx_function(
    exp10,
    zmlx_float::exp10(x)) zmlx_function(expm1, zmlx_float::expm1(x))
    zmlx_function(log, zmlx_float::log(x)) zmlx_function(log2, zmlx_float::log2(x)) zmlx_function(
        log10,
        zmlx_float::log10(
            x)) zmlx_function(log1p, zmlx_float::log1p(x)) zmlx_function(sqrt, zmlx_float::sqrt(x))
        zmlx_function(rsqrt, 1.0f / zmlx_float::sqrt(x)) zmlx_function(
            sin,
            zmlx_float::sin(
                x)) zmlx_function(cos, zmlx_float::cos(x)) zmlx_function(tan, zmlx_float::tan(x))
            zmlx_function(sinpi, zmlx_float::sinpi(x)) zmlx_function(cospi, zmlx_float::cospi(x))
                zmlx_function(tanpi, zmlx_float::sinpi(x) / zmlx_float::cospi(x)) zmlx_function(
                    asin,
                    zmlx_float::asin(x)) zmlx_function(acos, zmlx_float::acos(x))
                    zmlx_function(atan, zmlx_float::atan(x)) zmlx_function(
                        sinh,
                        zmlx_float::sinh(x)) zmlx_function(cosh, zmlx_float::cosh(x))
                        zmlx_function(tanh, zmlx_float::tanh(x)) zmlx_function(
                            asinh,
                            zmlx_float::asinh(x)) zmlx_function(acosh, zmlx_float::acosh(x))
                            zmlx_function(atanh, zmlx_float::atanh(x)) zmlx_function(
                                floor,
                                zmlx_float::floor(x)) zmlx_function(ceil, zmlx_float::ceil(x))
                                zmlx_function(trunc, zmlx_float::trunc(x)) zmlx_function(
                                    rint,
                                    zmlx_float::rint(x)) zmlx_function(round, zmlx_float::round(x))
                                    zmlx_function(fabs, zmlx_float::fabs(x)) zmlx_function(
                                        sign,
                                        x != x      ? 0.0f
                                            : x > 0 ? 1.0f
                                            : x < 0 ? -1.0f
                                                    : x)
                                        zmlx_function(
                                            fract,
                                            x - zmlx_float::floor(x) < 1.0f
                                                ? x - zmlx_float::floor(x)
                                                : 0x1.fffffep-1f)
                                            zmlx_function(
                                                saturate,
                                                x > 0.0f ? x < 1.0f ? x : 1.0f : 0.0f)
#undef zmlx_function

/// Of two: numbers, vectors of one type, or a vector and a number.
#define zmlx_vector_function(name)                                                 \
  template <typename T, int N>                                                     \
  zmlx_inline auto name(const vec<T, N>& a, const vec<T, N>& b) {                  \
    return zmlx_map([](T x, T y) { return T(name(x, y)); }, a, b);                 \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> name(const vec<T, N>& a, S b) {                            \
    return name(a, vec<T, N>(b));                                                  \
  }                                                                                \
  template <typename T, int N, typename S, typename = enable_if_t<is_scalar_v<S>>> \
  zmlx_inline vec<T, N> name(S a, const vec<T, N>& b) {                            \
    return name(vec<T, N>(a), b);                                                  \
  }                                                                                \
  namespace precise {                                                              \
  using metal::name;                                                               \
  }                                                                                \
  namespace fast {                                                                 \
  using metal::name;                                                               \
  }
#define zmlx_function(name, expression)                                                       \
  template <typename A, typename B, typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B>>> \
  zmlx_inline Floating<Both<A, B>> name(A first, B second) {                                  \
    float x = static_cast<float>(first);                                                      \
    float y = static_cast<float>(second);                                                     \
    return Floating<Both<A, B>>(expression);                                                  \
  }                                                                                           \
  zmlx_vector_function(name)
                                                zmlx_function(pow, zmlx_float::pow(x, y)) zmlx_function(
                                                    powr,
                                                    x < 0.0f ? NAN : zmlx_float::pow(x, y))
                                                    zmlx_function(fmod, zmlx_float::fmod(x, y)) zmlx_function(
                                                        atan2,
                                                        zmlx_float::atan2(x, y))
                                                        zmlx_function(
                                                            copysign,
                                                            zmlx_float::copysign(x, y))
                                                            zmlx_function(
                                                                fdim,
                                                                x > y        ? x - y
                                                                    : x <= y ? 0.0f
                                                                             : x +
                                                                        y) zmlx_function(divide, x / y)
                                                                zmlx_function(
                                                                    step,
                                                                    y < x ? 0.0f : 1.0f)
                                                                    zmlx_function(
                                                                        ldexp,
                                                                        zmlx_float::ldexp(
                                                                            x,
                                                                            static_cast<int>(y)))
#undef zmlx_function
// Where one is not a number, the result is the other.
#define zmlx_function(name, op)                                                               \
  template <typename A, typename B, typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B>>> \
  zmlx_inline Both<A, B> name(A first, B second) {                                            \
    using R = Both<A, B>;                                                                     \
    R x = static_cast<R>(first);                                                              \
    R y = static_cast<R>(second);                                                             \
    return x op y || y != y ? x : y;                                                          \
  }                                                                                           \
  zmlx_vector_function(name)
                                                                        zmlx_function(
                                                                            min,
                                                                            <) zmlx_function(max, >)
                                                                            zmlx_function(fmin, <)
                                                                                zmlx_function(
                                                                                    fmax,
                                                                                    >)
#undef zmlx_function
#undef zmlx_vector_function

                                                                                    template <
                                                                                        typename A,
                                                                                        typename B,
                                                                                        typename C>
                                                                                    zmlx_inline
    auto min3(A a, B b, C c) {
  return min(min(a, b), c);
}
template <typename A, typename B, typename C>
zmlx_inline auto max3(A a, B b, C c) {
  return max(max(a, b), c);
}
template <typename A, typename B, typename C>
zmlx_inline auto median3(A a, B b, C c) {
  return max(min(a, b), min(max(a, b), c));
}
template <typename A, typename B, typename C>
zmlx_inline auto clamp(A x, B low, C high) {
  return min(max(x, low), high);
}
namespace precise {
using metal::clamp;
}
namespace fast {
using metal::clamp;
}
template <typename A, typename B, typename C>
zmlx_inline auto mix(const A& x, const B& y, const C& t) {
  return x + (y - x) * t;
}
template <typename A, typename B, typename C>
zmlx_inline auto smoothstep(const A& from, const B& to, const C& x) {
  auto t = clamp((x - from) / (to - from), 0.0f, 1.0f);
  return t * t * (3.0f - 2.0f * t);
}
template <
    typename A,
    typename B,
    typename C,
    typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B> && is_scalar_v<C>>>
zmlx_inline Floating<Both<Both<A, B>, C>> fma(A a, B b, C c) {
  return Floating<Both<Both<A, B>, C>>(
      zmlx_float::fma(static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)));
}
template <typename T, int N>
zmlx_inline vec<T, N> fma(const vec<T, N>& a, const vec<T, N>& b, const vec<T, N>& c) {
  vec<T, N> out;
  for (int i = 0; i < N; ++i) {
    out[i] = fma(a[i], b[i], c[i]);
  }
  return out;
}
template <typename T>
zmlx_inline T sincos(T x, T& cosine) {
  cosine = cos(x);
  return sin(x);
}
template <typename T>
zmlx_inline T modf(T x, T& whole) {
  whole = trunc(x);
  return isinf(x) ? T(0) : T(x - whole);
}
template <typename T>
zmlx_inline T frexp(T x, int& exponent) {
  float m = static_cast<float>(x);
  exponent = 0;
  if (m == 0.0f || m != m || m - m != 0.0f) {
    return x;
  }
  if (zmlx_float::fabs(m) < FLT_MIN) {
    m *= 0x1p64f;
    exponent = -64;
  }
  uint bits = as_type<uint>(m);
  exponent += static_cast<int>((bits >> 23) & 0xFF) - 126;
  return T(as_type<float>((bits & 0x807FFFFFu) | 0x3F000000u));
}
template <typename T>
zmlx_inline int ilogb(T x) {
  int exponent = 0;
  frexp(x, exponent);
  return exponent - 1;
}

#define zmlx_question(name, expression)                         \
  template <typename T, typename = enable_if_t<is_scalar_v<T>>> \
  zmlx_inline bool name(T value) {                              \
    float x = static_cast<float>(value);                        \
    return expression;                                          \
  }                                                             \
  template <typename T, int N>                                  \
  zmlx_inline vec<bool, N> name(const vec<T, N>& v) {           \
    return zmlx_map([](T x) { return name(x); }, v);            \
  }
zmlx_question(isnan, x != x) zmlx_question(isinf, x == INFINITY || x == -INFINITY)
    zmlx_question(isfinite, x - x == 0.0f)
        zmlx_question(isnormal, x - x == 0.0f && (x >= FLT_MIN || x <= -FLT_MIN))
            zmlx_question(signbit, as_type<int>(x) < 0)
#undef zmlx_question

                template <typename T, typename = enable_if_t<is_scalar_v<T>>>
                zmlx_inline T abs(T x) {
  if constexpr (is_integral_v<T>) {
    return x < T(0) ? T(-x) : x;
  } else {
    return fabs(x);
  }
}
template <typename T, int N>
zmlx_inline vec<T, N> abs(const vec<T, N>& v) {
  return zmlx_map([](T x) { return abs(x); }, v);
}
/// `condition ? b : a`.
template <typename A, typename B, typename = enable_if_t<is_scalar_v<A> && is_scalar_v<B>>>
zmlx_inline Both<A, B> select(A a, B b, bool condition) {
  return condition ? static_cast<Both<A, B>>(b) : static_cast<Both<A, B>>(a);
}
template <typename T, int N, typename C>
zmlx_inline vec<T, N> select(const vec<T, N>& a, const vec<T, N>& b, const C& condition) {
  vec<bool, N> chosen(condition);
  vec<T, N> out;
  for (int i = 0; i < N; ++i) {
    out[i] = chosen[i] ? b[i] : a[i];
  }
  return out;
}
template <int N>
zmlx_inline bool any(const vec<bool, N>& v) {
  bool out = false;
  for (int i = 0; i < N; ++i) {
    out = out || v[i];
  }
  return out;
}
template <int N>
zmlx_inline bool all(const vec<bool, N>& v) {
  return !any(!v);
}
zmlx_inline bool any(bool x) {
  return x;
}
zmlx_inline bool all(bool x) {
  return x;
}

template <typename T, int N>
zmlx_inline T dot(const vec<T, N>& a, const vec<T, N>& b) {
  T sum = T(a[0] * b[0]);
  for (int i = 1; i < N; ++i) {
    sum = T(sum + a[i] * b[i]);
  }
  return sum;
}
template <typename V>
zmlx_inline auto length_squared(const V& v) {
  return dot(v, v);
}
template <typename V>
zmlx_inline auto length(const V& v) {
  return sqrt(dot(v, v));
}
template <typename V>
zmlx_inline auto distance_squared(const V& a, const V& b) {
  return length_squared(a - b);
}
template <typename V>
zmlx_inline auto distance(const V& a, const V& b) {
  return length(a - b);
}
template <typename V>
zmlx_inline V normalize(const V& v) {
  return v * rsqrt(dot(v, v));
}
template <typename T>
zmlx_inline vec<T, 3> cross(const vec<T, 3>& a, const vec<T, 3>& b) {
  return vec<T, 3>(a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x);
}
