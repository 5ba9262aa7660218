// zmlx/kernel/msl/library/integers.h: Metal's functions of whole numbers, and what MLX puts before
// each kernel. Behind functions.h.

/// Whole numbers: T as its bits, zero-extended.
template <typename T>
zmlx_inline ulong zmlx_bits(T x) {
  return static_cast<ulong>(x) & (sizeof(T) == 8 ? ~0UL : (1UL << (sizeof(T) * 8 % 64)) - 1);
}
#define zmlx_whole(name, expression)                              \
  template <typename T, typename = enable_if_t<is_integral_v<T>>> \
  zmlx_inline T name(T value) {                                   \
    constexpr int bits = static_cast<int>(sizeof(T)) * 8;         \
    ulong x = zmlx_bits(value);                                   \
    return static_cast<T>(expression);                            \
  }                                                               \
  template <typename T, int N>                                    \
  zmlx_inline vec<T, N> name(const vec<T, N>& v) {                \
    return zmlx_map([](T x) { return name(x); }, v);              \
  }
zmlx_whole(popcount, static_cast<int>(zmlx_float::popcount(x)) + 0 * bits)
    zmlx_whole(clz, x == 0 ? bits : zmlx_float::clz(x) - (64 - bits))
        zmlx_whole(ctz, x == 0 ? bits : 63 - zmlx_float::clz(x & (~x + 1)))
#undef zmlx_whole
            template <typename T>
            zmlx_inline T reverse_bits(T x) {
  T out = 0;
  for (size_t i = 0; i < sizeof(T) * 8; ++i) {
    out = static_cast<T>(static_cast<T>(out << 1) | ((x >> i) & 1));
  }
  return out;
}
template <typename T>
zmlx_inline T rotate(T x, T by) {
  constexpr ulong bits = sizeof(T) * 8;
  ulong n = zmlx_bits(by) % bits;
  return n == 0 ? x : static_cast<T>((zmlx_bits(x) << n) | (zmlx_bits(x) >> (bits - n)));
}
template <typename T>
zmlx_inline T extract_bits(T x, uint offset, uint bits) {
  constexpr uint width = sizeof(T) * 8;
  return bits == 0 ? T(0)
                   : static_cast<T>(static_cast<T>(x << (width - bits - offset)) >> (width - bits));
}
template <typename T>
zmlx_inline T insert_bits(T base, T insert, uint offset, uint bits) {
  ulong mask = (bits >= 64 ? ~0UL : (1UL << bits) - 1) << offset;
  return static_cast<T>((zmlx_bits(base) & ~mask) | ((zmlx_bits(insert) << offset) & mask));
}
template <typename T>
zmlx_inline T mulhi(T a, T b) {
  if constexpr (sizeof(T) < 8) {
    return static_cast<T>((static_cast<long>(a) * static_cast<long>(b)) >> (sizeof(T) * 8));
  } else {
    using Wide = conditional_t<(T(-1) < T(0)), __int128, unsigned __int128>;
    return static_cast<T>((static_cast<Wide>(a) * static_cast<Wide>(b)) >> 64);
  }
}
template <typename T>
zmlx_inline T mul24(T a, T b) {
  return static_cast<T>(a * b);
}
template <typename T>
zmlx_inline T mad24(T a, T b, T c) {
  return static_cast<T>(a * b + c);
}
template <typename T>
zmlx_inline T madhi(T a, T b, T c) {
  return static_cast<T>(mulhi(a, b) + c);
}
template <typename T>
zmlx_inline T absdiff(T a, T b) {
  return static_cast<T>(a > b ? a - b : b - a);
}
template <typename T>
zmlx_inline T hadd(T a, T b) {
  return static_cast<T>((a >> 1) + (b >> 1) + (a & b & 1));
}
template <typename T>
zmlx_inline T rhadd(T a, T b) {
  return static_cast<T>((a >> 1) + (b >> 1) + ((a | b) & 1));
}
template <typename T>
zmlx_inline T addsat(T a, T b) {
  T sum = static_cast<T>(zmlx_bits(a) + zmlx_bits(b));
  constexpr bool is_signed = T(-1) < T(0);
  bool over = is_signed ? ((a ^ sum) & (b ^ sum)) < T(0) : sum < a;
  return !over ? sum : b < T(0) ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <typename T>
zmlx_inline T subsat(T a, T b) {
  T difference = static_cast<T>(zmlx_bits(a) - zmlx_bits(b));
  constexpr bool is_signed = T(-1) < T(0);
  bool over = is_signed ? ((a ^ b) & (a ^ difference)) < T(0) : a < b;
  return !over                ? difference
      : is_signed && b < T(0) ? numeric_limits<T>::max()
                              : numeric_limits<T>::min();
}

// What MLX puts before each kernel.
zmlx_inline uint16_t bfloat16_to_uint16(bfloat16_t x) {
  return x.bits;
}
zmlx_inline bfloat16_t uint16_to_bfloat16(uint16_t x) {
  return as_type<bfloat16_t>(x);
}
template <typename T, typename U>
zmlx_inline T ceildiv(T n, U m) {
  return (n + m - 1) / zmlx_divisor(m);
}
template <typename I, typename S>
zmlx_inline int64_t elem_to_loc(I elem, const int* shape, const S* strides, int ndim) {
  int64_t place = 0;
  for (int i = ndim - 1; i >= 0 && elem > 0; --i) {
    place += static_cast<int64_t>(elem % static_cast<I>(shape[i])) * strides[i];
    elem /= static_cast<I>(shape[i]);
  }
  return place;
}
template <typename S>
zmlx_inline int64_t elem_to_loc(uint3 elem, const int* shape, const S* strides, int ndim) {
  int64_t place = elem.x * strides[ndim - 1] + elem.y * strides[ndim - 2];
  uint rest = elem.z;
  for (int i = ndim - 3; i >= 0; --i) {
    place += static_cast<int64_t>(rest % static_cast<uint>(shape[i])) * strides[i];
    rest /= static_cast<uint>(shape[i]);
  }
  return place;
}
template <typename S>
zmlx_inline int64_t elem_to_loc_1(uint elem, const S& stride) {
  return elem * stride;
}
template <typename S>
zmlx_inline int64_t elem_to_loc_2(uint2 elem, const S* strides) {
  return elem.x * strides[1] + elem.y * strides[0];
}
template <typename S>
zmlx_inline int64_t elem_to_loc_3(uint3 elem, const S* strides) {
  return elem.x * strides[2] + elem.y * strides[1] + elem.z * strides[0];
}
