// zmlx/kernel/cpu/minifloat-inl.h: the short floats of quantised weights, a vector at a time.
// Included once for each instruction set.
#include <cstdint>

#include "zmlx/kernel/cpu/minifloat.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

#if defined(ZMLX_KERNEL_CPU_MINIFLOAT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_MINIFLOAT_INL_H_
#undef ZMLX_KERNEL_CPU_MINIFLOAT_INL_H_
#else
#define ZMLX_KERNEL_CPU_MINIFLOAT_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

using U32 = hn::Rebind<uint32_t, F32>;

/// Floats with `Mantissa` bits at the bottom and the smallest normal number 2^Lowest, without sign.
template <int Mantissa, int Lowest>
HWY_INLINE Floats magnitude_of(hn::Vec<U32> bits) {
  // As if every code had an implicit one; those that have none then give half their value too much.
  constexpr auto exponent = static_cast<uint32_t>(Lowest - 1 + 127) << 23;
  const auto wide = hn::Add(hn::ShiftLeft<23 - Mantissa>(bits), hn::Set(U32(), exponent));
  const Floats value = hn::BitCast(F32(), wide);
  const Floats least = hn::Set(F32(), cpu::power_of_two(Lowest));
  const Floats small = hn::Sub(hn::Add(value, value), least);
  return hn::IfThenElse(hn::Lt(value, least), small, value);
}

/// `value` with the sign that bit Bit of `code` says.
template <int Bit>
HWY_INLINE Floats with_sign(Floats value, hn::Vec<U32> code) {
  const auto sign = hn::And(hn::ShiftLeft<31 - Bit>(code), hn::Set(U32(), 0x80000000u));
  return hn::Or(value, hn::BitCast(F32(), sign));
}

HWY_INLINE Floats from_e4m3(hn::Vec<U32> code) {
  const auto size = hn::And(code, hn::Set(U32(), 127u));
  const Floats nan = hn::Set(F32(), cpu::from_e4m3(127));
  const auto is_nan = hn::RebindMask(F32(), hn::Eq(size, hn::Set(U32(), 127u)));
  return with_sign<7>(hn::IfThenElse(is_nan, nan, magnitude_of<3, -6>(size)), code);
}

HWY_ALIGN constexpr float e2m1[16] =
    {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

/// Bits above the lowest four do not matter.
template <typename D>
HWY_INLINE Floats from_e2m1(D d, hn::Vec<U32> code) {
  const hn::Rebind<int32_t, F32> di;
  const auto size = hn::And(code, hn::Set(U32(), hn::MaxLanes(d) >= 16 ? 15u : 7u));
  if constexpr (hn::MaxLanes(d) >= 16) {
    return hn::TableLookupLanes(hn::LoadU(d, e2m1), hn::IndicesFromVec(d, hn::BitCast(di, size)));
  } else if constexpr (hn::MaxLanes(d) == 8) {
    const auto index = hn::IndicesFromVec(d, hn::BitCast(di, size));
    return with_sign<3>(hn::TableLookupLanes(hn::LoadU(d, e2m1), index), code);
  } else {
    return with_sign<3>(magnitude_of<1, 0>(size), code);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
