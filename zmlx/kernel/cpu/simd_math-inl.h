// zmlx/kernel/cpu/simd_math-inl.h: vectors of float32 over memory of f32, f16 or bf16: load, store,
// round, exp. Included once for each instruction set.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "hwy/highway.h"
#include "zmlx/runtime/tensor.h"

#if defined(ZMLX_KERNEL_CPU_SIMD_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_SIMD_MATH_INL_H_
#undef ZMLX_KERNEL_CPU_SIMD_MATH_INL_H_
#else
#define ZMLX_KERNEL_CPU_SIMD_MATH_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using Floats = hn::Vec<F32>;

// Vector registers that a block of accumulators may fill.
#if HWY_TARGET == HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int registers = 32;
#else
inline constexpr int registers = 16;
#endif

HWY_INLINE size_t lanes() {
  return hn::Lanes(F32());
}

HWY_INLINE Floats load(const float* p) {
  return hn::LoadU(F32(), p);
}

using Halves = hn::Vec<hn::Rebind<hwy::float16_t, F32>>;

#if HWY_TARGET == HWY_SCALAR
// Highway's emulation truncates, and has neither infinities nor NaN.
HWY_INLINE Floats from_half(Halves v) {
  const uint32_t sign = (v.raw.bits & 0x8000u) << 16;
  const uint32_t size = v.raw.bits & 0x7FFFu;
  float x = 0;
  if (size < 0x400) {
    x = std::ldexp(static_cast<float>(size), -24);
  } else {
    const uint32_t bits = (size << 13) + (size < 0x7C00 ? 0x38000000u : 0x70000000u);
    hwy::CopySameSize(&bits, &x);
  }
  return Floats(sign ? -x : x);
}
HWY_INLINE Halves to_half(Floats v) {
  uint32_t bits;
  hwy::CopySameSize(&v.raw, &bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t size = bits & 0x7FFFFFFFu;
  if (size > 0x7F800000u) {
    size = 0x7E00u;
  } else if (size >= 0x477FF000u) {
    size = 0x7C00u;
  } else if (size < 0x38800000u) {
    size = static_cast<uint32_t>(std::nearbyint(std::ldexp(std::fabs(v.raw), 24)));
  } else {
    size = (size - 0x38000000u + 0xFFFu + ((size >> 13) & 1u)) >> 13;
  }
  hwy::float16_t half;
  half.bits = static_cast<uint16_t>(sign | size);
  return Halves(half);
}
#else
HWY_INLINE Floats from_half(Halves v) {
  return hn::PromoteTo(F32(), v);
}
HWY_INLINE Halves to_half(Floats v) {
  return hn::DemoteTo(hn::Rebind<hwy::float16_t, F32>(), v);
}
#endif

HWY_INLINE Floats load(const hwy::float16_t* p) {
  return from_half(hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), p));
}
HWY_INLINE Floats load(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

/// 2 * lanes() elements as two vectors. Which element is in which lane is the same for all arrays
/// of T, so that sums and functions of elements can do without their order, which takes time for
/// bf16.
template <typename T>
HWY_INLINE void load_two(const T* p, Floats& a, Floats& b) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
    const hn::Rebind<uint32_t, F32> du;
    const hn::Repartition<uint16_t, F32> dh;
    const auto words = hn::BitCast(du, hn::LoadU(dh, reinterpret_cast<const uint16_t*>(p)));
    a = hn::BitCast(F32(), hn::ShiftLeft<16>(words));
    b = hn::BitCast(F32(), hn::And(words, hn::Set(du, 0xFFFF0000u)));
    return;
  }
#endif
  a = load(p);
  b = load(p + lanes());
}

/// Bits of bf16 in the upper half of each lane, ties to even, NaN kept.
HWY_INLINE hn::Vec<hn::Rebind<uint32_t, F32>> bf16_bits(Floats v) {
  const hn::Rebind<uint32_t, F32> du;
  auto bits = hn::BitCast(du, v);
  auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));
  auto nan = hn::RebindMask(du, hn::IsNaN(v));
  return hn::And(hn::IfThenElse(nan, hn::Set(du, 0x7FC00000u), rounded), hn::Set(du, 0xFFFF0000u));
}

HWY_INLINE void store(Floats v, float* p) {
  hn::StoreU(v, F32(), p);
}
HWY_INLINE void store(Floats v, hwy::float16_t* p) {
  hn::StoreU(to_half(v), hn::Rebind<hwy::float16_t, F32>(), p);
}
HWY_INLINE void store(Floats v, hwy::bfloat16_t* p) {
  const hn::Rebind<int32_t, F32> di;
  const hn::Rebind<uint16_t, F32> dh;
  auto bits = hn::BitCast(di, hn::ShiftRight<16>(bf16_bits(v)));
  hn::StoreU(hn::DemoteTo(dh, bits), dh, reinterpret_cast<uint16_t*>(p));
}

/// The first n < lanes() elements, then zeros. Reads no further.
template <typename T>
HWY_INLINE Floats load_n(const T* p, size_t n) {
  HWY_ALIGN T part[hn::MaxLanes(F32())] = {};
  for (size_t i = 0; i < n; ++i) {
    part[i] = p[i];
  }
  return load(part);
}
template <typename T>
HWY_INLINE void store_n(Floats v, T* p, size_t n) {
  HWY_ALIGN T part[hn::MaxLanes(F32())];
  store(v, part);
  for (size_t i = 0; i < n; ++i) {
    p[i] = part[i];
  }
}

/// A whole vector, or the `left` elements that remain of a row.
template <typename T>
HWY_INLINE Floats load_some(const T* p, size_t left) {
  return HWY_LIKELY(left >= lanes()) ? load(p) : load_n(p, left);
}
template <typename T>
HWY_INLINE void store_some(Floats v, T* p, size_t left) {
  if (HWY_LIKELY(left >= lanes())) {
    store(v, p);
  } else {
    store_n(v, p, left);
  }
}

/// v rounded to T and back.
template <typename T>
HWY_INLINE Floats round_to(Floats v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
    return hn::BitCast(F32(), bf16_bits(v));
  } else {
    return from_half(to_half(v));
  }
}
template <typename T>
HWY_INLINE float round_to(float x) {
  return hn::GetLane(round_to<T>(hn::Set(F32(), x)));
}

HWY_INLINE float sum(Floats v) {
  return hn::GetLane(hn::SumOfLanes(F32(), v));
}

/// e^x to 2 units in the last place, with NaN, infinities and denormals as std::exp has them.
HWY_INLINE Floats exp(Floats x) {
  const F32 d;
  const hn::Rebind<int32_t, F32> di;
  auto n = hn::Round(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  n = hn::Min(hn::Max(n, hn::Set(d, -150.0f)), hn::Set(d, 129.0f));
  // ln 2 in two parts, the first short enough that n times it is exact.
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::MulAdd(p, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  // 2^n in two factors, since n may lie outside the exponents of normal numbers.
  auto whole = hn::ConvertTo(di, n);
  auto half = hn::ShiftRight<1>(whole);
  auto bias = hn::Set(di, 127);
  auto first = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(half, bias)));
  auto second = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(hn::Sub(whole, half), bias)));
  auto y = hn::Mul(hn::Mul(p, first), second);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -104.0f)), y);
}

/// 1 / (1 + e^-x).
HWY_INLINE Floats sigmoid(Floats x) {
  auto one = hn::Set(F32(), 1.0f);
  return hn::Div(one, hn::Add(one, exp(hn::Neg(x))));
}

/// 1 / sqrt(mean(x^2) + eps) of one row. Four sums in a fixed order.
template <typename T>
HWY_INLINE float inverse_rms(const T* x, size_t n, float eps) {
  const F32 d;
  const size_t step = lanes();
  Floats s0 = hn::Zero(d);
  Floats s1 = s0;
  Floats s2 = s0;
  Floats s3 = s0;
  size_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    Floats a, b, c, e;
    load_two(x + i, a, b);
    load_two(x + i + 2 * step, c, e);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
    s2 = hn::MulAdd(c, c, s2);
    s3 = hn::MulAdd(e, e, s3);
  }
  for (; i < n; i += step) {
    auto a = load_some(x + i, n - i);
    s0 = hn::MulAdd(a, a, s0);
  }
  float squares = sum(hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
  return 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
