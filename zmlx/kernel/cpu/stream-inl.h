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

#undef ZMLX_HAS_SCALEF
HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

// Instructions that split a number into 2^n and the rest, and put it together again.
#if HWY_TARGET == HWY_AVX3
#define ZMLX_HAS_SCALEF 1
#else
#define ZMLX_HAS_SCALEF 0
#endif

using U32 = hn::Rebind<uint32_t, F32>;
using Words = hn::Vec<U32>;

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

/// Asks for the lines of 2 * lanes() elements: to the second-level cache, which has room for more
/// lines on their way than the first.
template <typename T>
HWY_INLINE void fetch_two(const T* p) {
  for (size_t i = 0; i < 2 * lanes() * sizeof(T); i += 64) {
    __builtin_prefetch(reinterpret_cast<const uint8_t*>(p) + i, 0, 2);
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

/// Stores what load_two() loaded, or was computed from it lane by lane.
template <typename T>
HWY_INLINE void put_two(Floats a, Floats b, T* p) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (std::is_same_v<T, hwy::bfloat16_t>) {
    const hn::Repartition<uint16_t, F32> dh;
    const auto low = hn::BitCast(dh, hn::ShiftRight<16>(rounded_up(a)));
    const auto high = hn::BitCast(dh, rounded_up(b));
    return hn::StoreU(hn::OddEven(high, low), dh, reinterpret_cast<uint16_t*>(p));
  }
#endif
  put(a, p, lanes());
  put(b, p + lanes(), lanes());
}

/// Which elements load_two() puts into its vectors.
template <typename T>
HWY_INLINE void elements_of_two(Words& a, Words& b) {
  constexpr bool split = HWY_TARGET != HWY_SCALAR && std::is_same_v<T, hwy::bfloat16_t>;
  const auto places = hn::Iota(U32(), 0);
  a = split ? hn::Add(places, places) : places;
  b = hn::Add(a, hn::Set(U32(), split ? 1 : static_cast<uint32_t>(lanes())));
}

/// Calls two(i) for each pair of vectors of n elements, then rest(i, left) for each vector that is
/// left.
template <typename F, typename G>
HWY_INLINE void over_pairs(int64_t n, F&& two, G&& rest) {
  const auto step = static_cast<int64_t>(lanes());
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    two(i);
  }
  for (; i < n; i += step) {
    rest(i, static_cast<size_t>(n - i));
  }
}

/// What map_row() takes to fetch nothing.
struct Nothing {
  HWY_INLINE void operator()(int64_t) const {}
};

/// out = f(in...) for n elements. fetch(i) is called where elements i and following are worked on,
/// so that it can ask for what comes later.
template <typename T, typename Fetch, typename F, typename... In>
HWY_INLINE void map_row(int64_t n, T* out, Fetch&& fetch, F&& f, const In*... in) {
  auto two = [&](int64_t i) HWY_ATTR {
    fetch(i);
    struct Pair {
      Floats a;
      Floats b;
    };
    auto load_pair = [i](const T* p) HWY_ATTR {
      Pair pair;
      load_two(p + i, pair.a, pair.b);
      return pair;
    };
    auto put_pair = [&](auto... pair) HWY_ATTR { put_two(f(pair.a...), f(pair.b...), out + i); };
    put_pair(load_pair(in)...);
  };
  auto rest = [&](int64_t i, size_t left)
                  HWY_ATTR { put(f(load_some(in + i, left)...), out + i, left); };
  over_pairs(n, two, rest);
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

/// What exp_in_units() takes its argument in units of: a factor that callers can multiply into
/// those that they have anyway.
template <typename T>
constexpr float exp_unit = ZMLX_HAS_SCALEF && sizeof(T) != sizeof(float) ? 1.44269504f : 1.0f;

/// e^(x / exp_unit<T>) for a result that is rounded to T: to 2 units in the last place of float32,
/// or 6e-6 where T is shorter. Denormal results may be 0. With `no_larger` x is at most 0, but for
/// rounding.
template <typename T, bool no_larger = false>
HWY_INLINE Floats exp_in_units(Floats x) {
  constexpr bool wide = sizeof(T) == sizeof(float);
  const F32 d;
#if ZMLX_HAS_SCALEF
  if constexpr (!wide) {
    // 2^x: the fraction from 0 to 1 (0 for infinities) by a polynomial of least relative error.
    const Floats r{_mm512_reduce_ps(x.raw, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};
    Floats p = hn::MulAdd(hn::Set(d, 1.3534169e-02f), r, hn::Set(d, 5.2011459e-02f));
    p = hn::MulAdd(p, r, hn::Set(d, 2.4144276e-01f));
    p = hn::MulAdd(p, r, hn::Set(d, 6.9300383e-01f));
    p = hn::MulAdd(p, r, hn::Set(d, 1.0000026e+00f));
    return Floats{_mm512_scalef_ps(p.raw, x.raw)};
  }
  // Past these bounds the result is 0 or infinity. NaN stays: it is the second argument.
  x = Floats{_mm512_max_ps(_mm512_set1_ps(-105.0f), x.raw)};
  if constexpr (!no_larger) {
    x = Floats{_mm512_min_ps(_mm512_set1_ps(89.0f), x.raw)};
  }
#endif
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
#if ZMLX_HAS_SCALEF
  return Floats{_mm512_scalef_ps(p.raw, n.raw)};
#else
  const hn::Rebind<int32_t, F32> di;
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
#endif
}

/// 1 / (1 + e^-x), as exact as exp_in_units().
template <typename T>
HWY_INLINE Floats sigmoid_for(Floats x) {
  const Floats one = hn::Set(F32(), 1.0f);
  const Floats e = exp_in_units<T>(hn::Mul(x, hn::Set(F32(), -exp_unit<T>)));
  const Floats sum = hn::Add(one, e);
#if ZMLX_HAS_SCALEF
  // A step of Newton's from 14 bits, which takes less time than a division. For an infinite sum the
  // error is NaN; the lesser of that and 1, in this order, is 1.
  const __m512 share = _mm512_rcp14_ps(sum.raw);
  const __m512 error = _mm512_min_ps(_mm512_fnmadd_ps(sum.raw, share, one.raw), one.raw);
  return Floats{_mm512_fmadd_ps(share, error, share)};
#else
  return hn::Div(one, sum);
#endif
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
