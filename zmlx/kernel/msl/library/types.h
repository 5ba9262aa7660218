// zmlx/kernel/msl/library/types.h: Metal's scalar types for C++ and CUDA: half and bfloat that
// round after each operation, and what templates need to know of types. Its text goes into each MSL
// kernel.

using uchar = unsigned char;
using ushort = unsigned short;
using uint = unsigned int;
using ulong = unsigned long;
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;
using ptrdiff_t = long;
using zmlx_char = signed char; // Metal's char, on every machine

#define INFINITY __builtin_bit_cast(float, 0x7F800000u)
#define HUGE_VALF INFINITY
#define NAN __builtin_bit_cast(float, 0x7FC00000u)
#define MAXFLOAT 3.402823466e+38f
#define FLT_MAX 3.402823466e+38f
#define FLT_MIN 1.175494351e-38f
#define FLT_EPSILON 1.192092896e-07f
#define HALF_MAX half(65504.0f)
#define HALF_MIN half(6.103515625e-05f)
#define HALF_EPSILON half(9.765625e-04f)
#define CHAR_BIT 8
#define CHAR_MAX 127
#define CHAR_MIN (-128)
#define UCHAR_MAX 255
#define SHRT_MAX 32767
#define SHRT_MIN (-32768)
#define USHRT_MAX 65535
#define INT_MAX 2147483647
#define INT_MIN (-2147483647 - 1)
#define UINT_MAX 4294967295u
#define LONG_MAX 9223372036854775807L
#define LONG_MIN (-9223372036854775807L - 1)
#define ULONG_MAX 18446744073709551615UL
#define M_E_F 2.71828182845904523536f
#define M_LOG2E_F 1.44269504088896340736f
#define M_LOG10E_F 0.434294481903251827651f
#define M_LN2_F 0.693147180559945309417f
#define M_LN10_F 2.30258509299404568402f
#define M_PI_F 3.14159265358979323846f
#define M_PI_2_F 1.57079632679489661923f
#define M_PI_4_F 0.785398163397448309616f
#define M_1_PI_F 0.318309886183790671538f
#define M_2_PI_F 0.636619772367581343076f
#define M_2_SQRTPI_F 1.12837916709551257390f
#define M_SQRT2_F 1.41421356237309504880f
#define M_SQRT1_2_F 0.707106781186547524401f
#define METAL_FUNC zmlx_inline
#define MLX_MTL_CONST static constexpr const
#define MLX_MTL_PRAGMA_UNROLL

template <bool yes, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
  using type = T;
};
template <bool yes, typename T = void>
using enable_if_t = typename enable_if<yes, T>::type;
template <bool yes, typename A, typename B>
struct conditional {
  using type = A;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool yes, typename A, typename B>
using conditional_t = typename conditional<yes, A, B>::type;
template <typename A, typename B>
constexpr bool is_same_v = false;
template <typename A>
constexpr bool is_same_v<A, A> = true;
template <typename A, typename B>
struct is_same {
  static constexpr bool value = is_same_v<A, B>;
};
template <typename T>
struct remove_cv {
  using type = T;
};
template <typename T>
struct remove_cv<const T> : remove_cv<T> {};
template <typename T>
struct remove_cv<volatile T> : remove_cv<T> {};
template <typename T>
struct remove_cv<const volatile T> : remove_cv<T> {};
template <typename T>
struct remove_cv<T&> : remove_cv<T> {};
template <typename T>
struct remove_cv<T&&> : remove_cv<T> {};
template <typename T>
using remove_cv_t = typename remove_cv<T>::type;
template <typename T>
T&& declval();

template <typename T>
constexpr bool is_integral_v = false;
template <>
constexpr bool is_integral_v<bool> = true;
template <>
constexpr bool is_integral_v<char> = true;
template <>
constexpr bool is_integral_v<signed char> = true;
template <>
constexpr bool is_integral_v<unsigned char> = true;
template <>
constexpr bool is_integral_v<short> = true;
template <>
constexpr bool is_integral_v<unsigned short> = true;
template <>
constexpr bool is_integral_v<int> = true;
template <>
constexpr bool is_integral_v<unsigned int> = true;
template <>
constexpr bool is_integral_v<long> = true;
template <>
constexpr bool is_integral_v<unsigned long> = true;
template <>
constexpr bool is_integral_v<long long> = true;
template <>
constexpr bool is_integral_v<unsigned long long> = true;

struct HalfFormat {
  static constexpr zmlx_inline float widen(ushort bits) {
    uint magnitude = static_cast<uint>(bits & 0x7FFF) << 13;
    uint sign = static_cast<uint>(bits & 0x8000) << 16;
    uint scaled = __builtin_bit_cast(uint, __builtin_bit_cast(float, magnitude) * 0x1p112f);
    return __builtin_bit_cast(
        float, (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : scaled) | sign);
  }
  static constexpr zmlx_inline ushort round(float x) {
    uint bits = __builtin_bit_cast(uint, x);
    uint sign = (bits >> 16) & 0x8000u;
    bits &= 0x7FFFFFFFu;
    uint normal = (bits - 0x37FFF001u + ((bits >> 13) & 1)) >> 13;
    // Adding a half makes the unit in the last place that of float16's smallest numbers.
    float tiny = bits < 0x38800000u ? __builtin_bit_cast(float, bits) : 0.0f;
    uint small = __builtin_bit_cast(uint, tiny + 0.5f) - 0x3F000000u;
    uint half = bits < 0x38800000u ? small : bits >= 0x477FF000u ? 0x7C00u : normal;
    return static_cast<ushort>((bits > 0x7F800000u ? 0x7E00u : half) | sign);
  }
};
struct BfloatFormat {
  static constexpr zmlx_inline float widen(ushort bits) {
    return __builtin_bit_cast(float, static_cast<uint>(bits) << 16);
  }
  static constexpr zmlx_inline ushort round(float x) {
    uint bits = __builtin_bit_cast(uint, x);
    uint rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    return static_cast<ushort>(x != x ? 0x7FC0u : rounded);
  }
};

/// A floating type of 16 bits. Converts to float by itself, so that with a float the result is one.
template <typename Format>
struct Small {
  ushort bits;

  Small() = default;
  template <typename T, typename = decltype(static_cast<float>(declval<const T&>()))>
  constexpr zmlx_inline Small(const T& x) : bits(Format::round(static_cast<float>(x))) {}
  constexpr zmlx_inline operator float() const {
    return Format::widen(bits);
  }
  constexpr zmlx_inline Small operator-() const {
    Small y = *this;
    y.bits ^= 0x8000;
    return y;
  }
  constexpr zmlx_inline Small operator+() const {
    return *this;
  }
  zmlx_inline Small& operator++() {
    return *this = Small(float(*this) + 1.0f);
  }
  zmlx_inline Small& operator--() {
    return *this = Small(float(*this) - 1.0f);
  }
  zmlx_inline Small operator++(int) {
    Small before = *this;
    ++*this;
    return before;
  }
  zmlx_inline Small operator--(int) {
    Small before = *this;
    --*this;
    return before;
  }
};
using half = Small<HalfFormat>;
using bfloat = Small<BfloatFormat>;
using float16_t = half;
using bfloat16_t = bfloat;

template <typename T>
constexpr bool is_small_v = false;
template <>
constexpr bool is_small_v<half> = true;
template <>
constexpr bool is_small_v<bfloat> = true;
template <typename T>
constexpr bool is_floating_point_v = is_small_v<T>;
template <>
constexpr bool is_floating_point_v<float> = true;
template <typename T>
constexpr bool is_scalar_v = is_integral_v<T> || is_floating_point_v<T>;
template <typename T>
constexpr bool is_arithmetic_v = is_scalar_v<T>;
template <typename T>
struct is_integral {
  static constexpr bool value = is_integral_v<T>;
};
template <typename T>
struct is_floating_point {
  static constexpr bool value = is_floating_point_v<T>;
};

/// What A and B combine to where that is half or bfloat; anything else is C++'s.
template <typename A, typename B>
struct SmallResult {
  static constexpr bool value = (is_small_v<A> && (is_same_v<A, B> || is_integral_v<B>)) ||
      (is_small_v<B> && is_integral_v<A>);
  using type = conditional_t<is_small_v<A>, A, B>;
};
#define zmlx_operator(op)                                                    \
  template <                                                                 \
      typename A,                                                            \
      typename B,                                                            \
      typename R = enable_if_t<SmallResult<A, B>::value, SmallResult<A, B>>> \
  constexpr zmlx_inline typename R::type operator op(A a, B b) {             \
    return typename R::type(static_cast<float>(a) op static_cast<float>(b)); \
  }                                                                          \
  template <typename F, typename B, typename = enable_if_t<is_scalar_v<B>>>  \
  zmlx_inline Small<F>& operator op##=(Small<F>& a, B b) {                   \
    return a = Small<F>(a op b);                                             \
  }
zmlx_operator(+) zmlx_operator(-) zmlx_operator(*) zmlx_operator(/)
#undef zmlx_operator

    /// The type of `condition ? A : B`.
    template <typename A, typename B, typename = void>
    struct Common {
  using type = remove_cv_t<decltype(true ? declval<A>() : declval<B>())>;
};
template <typename A, typename B>
struct Common<A, B, enable_if_t<is_small_v<A> || is_small_v<B>>> {
  using type = conditional_t<
      SmallResult<A, B>::value,
      typename SmallResult<A, B>::type,
      conditional_t<is_scalar_v<A> && is_scalar_v<B>, float, conditional_t<is_small_v<A>, B, A>>>;
};
/// `condition ? yes() : no()` for operands that need not be of one class.
template <typename C, typename A, typename B>
constexpr zmlx_inline auto zmlx_choose(C condition, const A& yes, const B& no) {
  using R =
      remove_cv_t<typename Common<remove_cv_t<decltype(yes())>, remove_cv_t<decltype(no())>>::type>;
  if (condition) {
    return static_cast<R>(yes());
  }
  return static_cast<R>(no());
}

/// What stands behind `/` and `%`: a division by zero would stop the process, and gives zero.
template <typename T>
struct Divisor {
  T value;
};
template <typename T>
constexpr zmlx_inline Divisor<remove_cv_t<T>> zmlx_divisor(const T& value) {
  return {value};
}
template <typename A, typename B>
constexpr bool both_integral_v = is_integral_v<remove_cv_t<A>>&& is_integral_v<remove_cv_t<B>>;
template <typename A, typename B>
constexpr zmlx_inline auto operator/(const A& a, Divisor<B> b) {
  if constexpr (both_integral_v<A, B>) {
    using R = decltype(a / b.value);
    R d = static_cast<R>(b.value);
    return d == 0 ? R(0) : d == static_cast<R>(-1) && R(-1) < R(0) ? R(R(0) - R(a)) : R(R(a) / d);
  } else {
    return a / b.value;
  }
}
template <typename A, typename B>
constexpr zmlx_inline auto operator%(const A& a, Divisor<B> b) {
  if constexpr (both_integral_v<A, B>) {
    using R = decltype(a % b.value);
    R d = static_cast<R>(b.value);
    return d == 0 || (d == static_cast<R>(-1) && R(-1) < R(0)) ? R(0) : R(R(a) % d);
  } else {
    return a % b.value;
  }
}
template <typename A, typename B>
zmlx_inline A& operator/=(A& a, Divisor<B> b) {
  return a = static_cast<A>(a / b);
}
template <typename A, typename B>
zmlx_inline A& operator%=(A& a, Divisor<B> b) {
  return a = static_cast<A>(a % b);
}

template <typename T>
struct numeric_limits;
#define zmlx_limits(T, least, most, lowest_, eps)      \
  template <>                                          \
  struct numeric_limits<T> {                           \
    static constexpr zmlx_inline T min() {             \
      return T(least);                                 \
    }                                                  \
    static constexpr zmlx_inline T max() {             \
      return T(most);                                  \
    }                                                  \
    static constexpr zmlx_inline T lowest() {          \
      return T(lowest_);                               \
    }                                                  \
    static constexpr zmlx_inline T epsilon() {         \
      return T(eps);                                   \
    }                                                  \
    static constexpr zmlx_inline T infinity() {        \
      return T(is_floating_point_v<T> ? INFINITY : 0); \
    }                                                  \
    static constexpr zmlx_inline T quiet_NaN() {       \
      return T(is_floating_point_v<T> ? NAN : 0);      \
    }                                                  \
  };
zmlx_limits(float, FLT_MIN, FLT_MAX, -FLT_MAX, FLT_EPSILON)
    zmlx_limits(half, 6.103515625e-05f, 65504.0f, -65504.0f, 9.765625e-04f)
        zmlx_limits(bfloat, FLT_MIN, 3.38953139e+38f, -3.38953139e+38f, 0.0078125f)
            zmlx_limits(bool, 0, 1, 0, 0) zmlx_limits(zmlx_char, CHAR_MIN, CHAR_MAX, CHAR_MIN, 0)
                zmlx_limits(uchar, 0, UCHAR_MAX, 0, 0)
                    zmlx_limits(short, SHRT_MIN, SHRT_MAX, SHRT_MIN, 0)
                        zmlx_limits(ushort, 0, USHRT_MAX, 0, 0)
                            zmlx_limits(int, INT_MIN, INT_MAX, INT_MIN, 0)
                                zmlx_limits(uint, 0, UINT_MAX, 0, 0)
                                    zmlx_limits(long, LONG_MIN, LONG_MAX, LONG_MIN, 0)
                                        zmlx_limits(ulong, 0, ULONG_MAX, 0, 0)
#undef zmlx_limits

    /// MLX's limits, as kernels of its own use them.
    template <typename T>
    struct Limits {
  static constexpr T max =
      is_floating_point_v<T> ? numeric_limits<T>::infinity() : numeric_limits<T>::max();
  static constexpr T min =
      is_floating_point_v<T> ? T(-numeric_limits<T>::infinity()) : numeric_limits<T>::min();
  static constexpr T finite_max = numeric_limits<T>::max();
  static constexpr T finite_min = numeric_limits<T>::lowest();
};

template <typename To, typename From>
zmlx_inline To as_type(const From& x) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of one size");
  To y;
  zmlx_copy(&y, &x, sizeof(To));
  return y;
}
