// zmlx/kernel/cpu/stream-inl.h: what kernels that keep up with memory need: rows without a test a
// vector, exp no more exact than the dtype, stores past the caches. Included once for each
// instruction set.
#include <cstdint>
#include <type_traits>

#include "hwy/cache_control.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/kernel/cpu/stream.h"

#if defined(ZMLX_KERNEL_CPU_STREAM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_STREAM_INL_H_
#undef ZMLX_KERNEL_CPU_STREAM_INL_H_
#else
#define ZMLX_KERNEL_CPU_STREAM_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Calls f(i, left) for each vector of n elements; for whole vectors `left` is a constant.
template <typename F>
HWY_INLINE void over_vectors(int64_t n, F&& f) {
  const auto step = static_cast<int64_t>(lanes());
  int64_t i = 0;
  for (; i + step <= n; i += step) {
    f(i, lanes());
  }
  if (i < n) {
    f(i, static_cast<size_t>(n - i));
  }
}

/// The upper half of each lane is v rounded to bf16, ties to even, for what narrow() takes.
HWY_INLINE auto rounded_up(Floats v) {
  const hn::Rebind<uint32_t, F32> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  return hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd);
}

/// v rounded to T as 16-bit vector elements. v is a result of arithmetic on values of T: its NaNs
/// have zeros where T has no bits, so that rounding cannot carry out of them.
HWY_INLINE auto narrow(Floats v, hwy::float16_t*) {
  return to_half(v);
}
HWY_INLINE auto narrow(Floats v, hwy::bfloat16_t*) {
  const hn::Rebind<int32_t, F32> di;
  return hn::DemoteTo(
      hn::Rebind<uint16_t, F32>(), hn::BitCast(di, hn::ShiftRight<16>(rounded_up(v))));
}

/// v rounded to T and back, as narrow() does it.
template <typename T>
HWY_INLINE Floats round_result(Floats v) {
  if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
    const hn::Rebind<uint32_t, F32> du;
    return hn::BitCast(F32(), hn::And(rounded_up(v), hn::Set(du, 0xFFFF0000u)));
  } else {
    return round_to<T>(v);
  }
}

/// Stores what was computed from values of T.
template <typename T>
HWY_INLINE void put(Floats v, T* p, size_t left) {
  if (HWY_UNLIKELY(left < lanes())) {
    return store_n(v, p, left);
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    hn::StoreU(v, F32(), p);
  } else {
    using Element = std::conditional_t<std::is_same_v<T, hwy::bfloat16_t>, uint16_t, T>;
    hn::StoreU(narrow(v, p), hn::Rebind<Element, F32>(), reinterpret_cast<Element*>(p));
  }
}

/// Calls write(p), which writes n elements from p on, so that they come to `out`. With `past_cache`
/// (see cpu::past_cache; flush_stores() must follow) they get there from a buffer, a whole line at
/// a time: a line whose parts come one by one may leave the processor in pieces, which is slow.
template <typename T, typename F>
HWY_INLINE void written(T* out, int64_t n, bool past_cache, F&& write) {
  if (!past_cache) {
    return write(out);
  }
  alignas(64) T row[cpu::past_cache_row / sizeof(T)];
  write(row);
  const hn::ScalableTag<uint8_t> d;
  const auto step = hn::Lanes(d);
  const size_t bytes = static_cast<size_t>(n) * sizeof(T);
  auto* from = reinterpret_cast<const uint8_t*>(row);
  auto* to = reinterpret_cast<uint8_t*>(out);
  for (size_t i = 0; i < bytes; i += 64) {
    for (size_t j = i; j < i + 64; j += step) {
      hn::Stream(hn::Load(d, from + j), d, to + j);
    }
  }
}

/// e^x for a result that is rounded to T: to 2 units in the last place of float32, or 3e-6 where T
/// is shorter. Denormal results are 0. With `no_larger` x is at most 0, but for rounding.
template <typename T, bool no_larger = false>
HWY_INLINE Floats exp_for(Floats x) {
  constexpr bool wide = sizeof(T) == sizeof(float);
  const F32 d;
  const hn::Rebind<int32_t, F32> di;
  // Added to 1.5 * 2^23 a number is rounded to a whole one, which is then in the lowest bits.
  const Floats magic = hn::Set(d, 12582912.0f);
  const Floats shifted = hn::MulAdd(x, hn::Set(d, 1.44269504088896341f), magic);
  const Floats n = hn::Sub(shifted, magic);
  Floats r;
  Floats p;
  if constexpr (wide) {
    r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
    r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
    p = hn::MulAdd(hn::Set(d, 1.9875691500e-4f), r, hn::Set(d, 1.3981999507e-3f));
    p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
    p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
    p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  } else {
    r = hn::NegMulAdd(n, hn::Set(d, 0.69314718056f), x);
    p = hn::MulAdd(hn::Set(d, 8.3333333e-3f), r, hn::Set(d, 4.1666667e-2f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.6666667e-1f));
    p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  }
  p = hn::MulAdd(p, hn::Mul(r, r), hn::Add(r, hn::Set(d, 1.0f)));
  const auto power = hn::ShiftLeft<23>(hn::BitCast(di, shifted));
  Floats y = hn::BitCast(d, hn::Add(hn::BitCast(di, p), power));
  y = hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -87.0f)), y);
  if constexpr (!no_larger) {
    y = hn::IfThenElse(hn::Gt(x, hn::Set(d, 88.72f)), hn::Set(d, HUGE_VALF), y);
  }
  if constexpr (wide) {
    // The lowest bits of a float32's NaN may be set; those of a shorter one are not.
    y = hn::IfThenElse(hn::IsNaN(x), x, y);
  }
  return y;
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
