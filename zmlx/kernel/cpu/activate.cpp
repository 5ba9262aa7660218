// zmlx/kernel/cpu/activate.cpp: activations, sums of two and dropout, for each instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/activate.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <cmath>

#include "hwy/contrib/math/math-inl.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::Activation;
using U32 = hn::Rebind<uint32_t, F32>;
using Words = hn::Vec<U32>;

template <typename F>
void with_element_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f16:
      return f(hwy::float16_t());
    case Dtype::bf16:
      return f(hwy::bfloat16_t());
    default:
      return f(0.0f);
  }
}

HWY_INLINE Floats number(float x) {
  return hn::Set(F32(), x);
}

/// Where x is NaN, x: Highway's functions need not keep it.
HWY_INLINE Floats keep_nan(Floats x, Floats y) {
  return hn::IfThenElse(hn::IsNaN(x), x, y);
}

HWY_INLINE Floats tanh_of(Floats x) {
  return keep_nan(x, hn::Tanh(F32(), hn::Min(hn::Max(x, number(-20)), number(20))));
}

/// Highway's Log takes positive finite numbers.
HWY_INLINE Floats log_of(Floats x) {
  const Floats y = hn::Log(F32(), x);
  const Floats finite = hn::IfThenElse(hn::Eq(x, number(0)), number(-HUGE_VALF), y);
  const Floats real = hn::IfThenElse(hn::Eq(x, number(HUGE_VALF)), x, finite);
  return keep_nan(x, hn::IfThenElse(hn::Lt(x, number(0)), number(NAN), real));
}

/// x where it is positive, else alpha (e^x - 1).
HWY_INLINE Floats elu_of(Floats x, float alpha) {
  const Floats below = hn::Expm1(F32(), hn::Max(hn::Min(x, number(0)), number(-88)));
  const Floats y = hn::IfThenElse(hn::Gt(x, number(0)), x, hn::Mul(number(alpha), below));
  return keep_nan(x, y);
}

/// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|).
HWY_INLINE Floats softplus(Floats x) {
  const Floats tail = hn::Log1p(F32(), exp(hn::Neg(hn::Abs(x))));
  return keep_nan(x, hn::Add(hn::Max(x, number(0)), tail));
}

/// 1 - erf(x) for x >= 0 to a relative 1.2e-7 (Press et al., Numerical Recipes, erfcc).
HWY_INLINE Floats erfc_of(Floats x) {
  constexpr float terms[] = {
      -0.82215223f,
      1.48851587f,
      -1.13520398f,
      0.27886807f,
      -0.18628806f,
      0.09678418f,
      0.37409196f,
      1.00002368f,
      -1.26551223f};
  const Floats t = hn::Div(number(1), hn::MulAdd(x, number(0.5f), number(1)));
  Floats p = number(0.17087277f);
  for (float term : terms) {
    p = hn::MulAdd(p, t, number(term));
  }
  return hn::Mul(t, exp(hn::NegMulAdd(x, x, p)));
}

template <Activation f>
HWY_INLINE Floats activation(Floats x, [[maybe_unused]] float parameter) {
  if constexpr (f == Activation::silu) {
    return hn::Mul(x, sigmoid(x));
  } else if constexpr (f == Activation::gelu) {
    // x times the normal distribution's share below x, without cancellation in its tail.
    const Floats tail = hn::Mul(number(0.5f), erfc_of(hn::Mul(hn::Abs(x), number(0.70710678f))));
    const Floats below = hn::IfThenElse(hn::Lt(x, number(0)), tail, hn::Sub(number(1), tail));
    return hn::Mul(x, below);
  } else if constexpr (f == Activation::gelu_tanh) {
    const Floats cube = hn::Mul(hn::Mul(x, x), x);
    // (1 + tanh(u)) / 2 is the sigmoid of 2 u.
    return hn::Mul(
        x, sigmoid(hn::Mul(number(1.59576912f), hn::MulAdd(number(0.044715f), cube, x))));
  } else if constexpr (f == Activation::relu) {
    return keep_nan(x, hn::Max(x, number(0)));
  } else if constexpr (f == Activation::relu2) {
    const Floats y = keep_nan(x, hn::Max(x, number(0)));
    return hn::Mul(y, y);
  } else if constexpr (f == Activation::sigmoid) {
    return sigmoid(x);
  } else if constexpr (f == Activation::tanh) {
    return tanh_of(x);
  } else if constexpr (f == Activation::softplus) {
    return softplus(x);
  } else if constexpr (f == Activation::exp) {
    return exp(x);
  } else if constexpr (f == Activation::log) {
    return log_of(x);
  } else if constexpr (f == Activation::log_sigmoid) {
    return hn::Neg(softplus(hn::Neg(x)));
  } else if constexpr (f == Activation::gelu_fast) {
    return hn::Mul(x, sigmoid(hn::Mul(number(1.702f), x)));
  } else if constexpr (f == Activation::relu6) {
    return keep_nan(x, hn::Min(hn::Max(x, number(0)), number(6)));
  } else if constexpr (f == Activation::hardswish) {
    const Floats share = hn::Min(hn::Max(hn::Add(x, number(3)), number(0)), number(6));
    return keep_nan(x, hn::Mul(x, hn::Mul(share, number(1.0f / 6))));
  } else if constexpr (f == Activation::selu) {
    return hn::Mul(number(1.05070099f), elu_of(x, 1.67326324f));
  } else if constexpr (f == Activation::elu) {
    return elu_of(x, parameter);
  } else if constexpr (f == Activation::leaky_relu) {
    return hn::IfThenElse(hn::Gt(x, number(0)), x, hn::Mul(number(parameter), x));
  } else {
    return hn::Mul(x, tanh_of(softplus(x)));
  }
}

template <Activation f>
void activate_as(
    Dtype dtype,
    const void* gate,
    const void* x,
    int64_t n,
    void* out,
    float parameter) {
  with_element_type(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    auto* gates = static_cast<const T*>(gate);
    for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
      const auto left = static_cast<size_t>(n - i);
      const Floats v = load_some(from + i, left);
      const Floats y = gates ? hn::Mul(activation<f>(load_some(gates + i, left), parameter), v)
                             : activation<f>(v, parameter);
      store_some(y, to + i, left);
    }
  });
}

using Activate = void (*)(Dtype, const void*, const void*, int64_t, void*, float);

void activate(
    Activation f,
    Dtype dtype,
    const void* gate,
    const void* x,
    int64_t n,
    void* out,
    float parameter) {
  // In the order of the enumeration.
  static constexpr Activate kernels[] = {
      activate_as<Activation::silu>,
      activate_as<Activation::gelu>,
      activate_as<Activation::gelu_tanh>,
      activate_as<Activation::relu>,
      activate_as<Activation::relu2>,
      activate_as<Activation::sigmoid>,
      activate_as<Activation::tanh>,
      activate_as<Activation::softplus>,
      activate_as<Activation::mish>,
      activate_as<Activation::exp>,
      activate_as<Activation::log>,
      activate_as<Activation::log_sigmoid>,
      activate_as<Activation::gelu_fast>,
      activate_as<Activation::relu6>,
      activate_as<Activation::hardswish>,
      activate_as<Activation::selu>,
      activate_as<Activation::elu>,
      activate_as<Activation::leaky_relu>,
  };
  kernels[static_cast<size_t>(f)](dtype, gate, x, n, out, parameter);
}

void add_row(Dtype dtype, const void* a, const void* b, int64_t n, void* out) {
  with_element_type(dtype, [&]<typename T>(T) {
    for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
      const auto left = static_cast<size_t>(n - i);
      const Floats x = load_some(static_cast<const T*>(a) + i, left);
      const Floats y = load_some(static_cast<const T*>(b) + i, left);
      store_some(hn::Add(x, y), static_cast<T*>(out) + i, left);
    }
  });
}

template <int distance>
HWY_INLINE void mix(Words& a, Words& b) {
  a = hn::Add(a, b);
  b = hn::Xor(hn::RotateRight<32 - distance>(b), a);
}

/// Threefry-2x32 with 20 rounds of the counters (a, b), in place.
HWY_INLINE void threefry(uint32_t k0, uint32_t k1, Words& a, Words& b) {
  const U32 d;
  const uint32_t keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
  a = hn::Add(a, hn::Set(d, keys[0]));
  b = hn::Add(b, hn::Set(d, keys[1]));
  for (uint32_t i = 0; i < 5; ++i) {
    if (i % 2 == 0) {
      mix<13>(a, b);
      mix<15>(a, b);
      mix<26>(a, b);
      mix<6>(a, b);
    } else {
      mix<17>(a, b);
      mix<29>(a, b);
      mix<16>(a, b);
      mix<24>(a, b);
    }
    a = hn::Add(a, hn::Set(d, keys[(i + 1) % 3]));
    b = hn::Add(b, hn::Set(d, keys[(i + 2) % 3] + i + 1));
  }
}

/// x times scale where the word's upper 24 bits, as a fraction, are at least p.
HWY_INLINE Floats keep(Floats x, Words word, Floats p, Floats scale) {
  const hn::Rebind<int32_t, F32> di;
  const Floats fraction =
      hn::Mul(hn::ConvertTo(F32(), hn::BitCast(di, hn::ShiftRight<8>(word))), number(0x1p-24f));
  return hn::IfThenElseZero(hn::Ge(fraction, p), hn::Mul(x, scale));
}

void dropout_pairs(
    Dtype dtype,
    const void* x,
    const uint32_t* key,
    float p,
    int64_t n,
    int64_t first,
    int64_t last,
    void* out) {
  // Word i comes from the counters (i, i + pairs); of an odd number the middle one is alone, with
  // the counters (n / 2, 0).
  const int64_t pairs = cpu::pair_count(n);
  const int64_t whole = n / 2;
  const U32 d;
  const Floats chance = number(p);
  const Floats scale = number(1 / (1 - p));
  with_element_type(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    for (int64_t i = first; i < std::min(last, whole); i += static_cast<int64_t>(lanes())) {
      const auto left = static_cast<size_t>(std::min(last, whole) - i);
      Words a = hn::Iota(d, static_cast<uint32_t>(i));
      Words b = hn::Iota(d, static_cast<uint32_t>(i + pairs));
      threefry(key[0], key[1], a, b);
      store_some(keep(load_some(from + i, left), a, chance, scale), to + i, left);
      store_some(keep(load_some(from + i + pairs, left), b, chance, scale), to + i + pairs, left);
    }
    if (whole < pairs && last == pairs && first < last) {
      Words a = hn::Set(d, static_cast<uint32_t>(whole));
      Words b = hn::Zero(d);
      threefry(key[0], key[1], a, b);
      store_n(keep(load_n(from + whole, 1), a, chance, scale), to + whole, 1);
    }
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(activate);
HWY_EXPORT(add_row);
HWY_EXPORT(dropout_pairs);

namespace cpu {

void activate(
    Activation f,
    Dtype dtype,
    const void* gate,
    const void* x,
    int64_t n,
    void* out,
    float parameter) {
  HWY_DYNAMIC_DISPATCH(activate)(f, dtype, gate, x, n, out, parameter);
}

void add_row(Dtype dtype, const void* a, const void* b, int64_t n, void* out) {
  HWY_DYNAMIC_DISPATCH(add_row)(dtype, a, b, n, out);
}

void dropout_pairs(
    Dtype dtype,
    const void* x,
    const uint32_t* key,
    float p,
    int64_t n,
    int64_t first,
    int64_t last,
    void* out) {
  HWY_DYNAMIC_DISPATCH(dropout_pairs)(dtype, x, key, p, n, first, last, out);
}

} // namespace cpu
} // namespace zmlx
#endif
