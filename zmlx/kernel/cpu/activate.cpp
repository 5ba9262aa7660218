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
#include "zmlx/kernel/cpu/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::Activation;

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

template <typename T>
HWY_FLATTEN void
add_row_of(const T* a, const T* b, int64_t n, T* out, bool past_cache, const T* ahead) {
  const int64_t next = cpu::row_ahead(n, sizeof(T));
  auto fetch = [&](int64_t i) HWY_ATTR {
    if (ahead) {
      fetch_two(ahead + i);
      fetch_two(b + i + next);
    }
  };
  auto add = [](Floats v, Floats w) HWY_ATTR { return hn::Add(v, w); };
  written(out, n, past_cache, [&](T* to) HWY_ATTR { map_row(n, to, fetch, add, a, b); });
}

void add_row(
    Dtype dtype,
    const void* a,
    const void* b,
    int64_t n,
    void* out,
    bool past_cache,
    const void* ahead) {
  with_element_type(dtype, [&]<typename T>(T) {
    add_row_of(
        static_cast<const T*>(a),
        static_cast<const T*>(b),
        n,
        static_cast<T*>(out),
        past_cache,
        static_cast<const T*>(ahead));
  });
}

/// Every lane turned left by `distance` bits.
template <int distance>
HWY_INLINE Words turn(Words v) {
#if HWY_TARGET == HWY_AVX2
  // Whole bytes move in one instruction, other distances take three.
  if constexpr (distance % 8 == 0) {
    constexpr uint8_t first = 4 - distance / 8;
    alignas(16) static constexpr uint8_t places[16] = {
        first % 4,
        (first + 1) % 4,
        (first + 2) % 4,
        (first + 3) % 4,
        4 + first % 4,
        4 + (first + 1) % 4,
        4 + (first + 2) % 4,
        4 + (first + 3) % 4,
        8 + first % 4,
        8 + (first + 1) % 4,
        8 + (first + 2) % 4,
        8 + (first + 3) % 4,
        12 + first % 4,
        12 + (first + 1) % 4,
        12 + (first + 2) % 4,
        12 + (first + 3) % 4};
    const hn::Repartition<uint8_t, U32> d;
    return hn::BitCast(U32(), hn::TableLookupBytes(hn::BitCast(d, v), hn::LoadDup128(d, places)));
  }
#endif
  return hn::RotateRight<32 - distance>(v);
}

/// What Threefry-2x32 adds to both words at its begin and after each four of its rounds. `last` is
/// added to the words at the end.
struct Keys {
  Words a[6];
  Words b[6];

  HWY_INLINE Keys(const uint32_t* key, uint32_t last) {
    const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDAu};
    for (uint32_t i = 0; i < 6; ++i) {
      const uint32_t more = i == 5 ? last : 0;
      a[i] = hn::Set(U32(), keys[i % 3] + more);
      b[i] = hn::Set(U32(), keys[(i + 1) % 3] + i + more);
    }
  }
};

/// Threefry-2x32 with 20 rounds of `blocks` vectors of counters (a[j], b[j]), in place. They are
/// independent, which hides that every instruction of one waits for the one before.
template <int blocks>
HWY_INLINE void threefry(const Keys& keys, Words (&a)[blocks], Words (&b)[blocks]) {
  auto add = [&](int i) HWY_ATTR {
    for (int j = 0; j < blocks; ++j) {
      a[j] = hn::Add(a[j], keys.a[i]);
      b[j] = hn::Add(b[j], keys.b[i]);
    }
  };
  auto mix = [&]<int distance>() HWY_ATTR {
    for (int j = 0; j < blocks; ++j) {
      a[j] = hn::Add(a[j], b[j]);
      b[j] = hn::Xor(turn<distance>(b[j]), a[j]);
    }
  };
  add(0);
  for (int i = 1; i < 6; ++i) {
    if (i % 2 == 1) {
      mix.template operator()<13>();
      mix.template operator()<15>();
      mix.template operator()<26>();
      mix.template operator()<6>();
    } else {
      mix.template operator()<17>();
      mix.template operator()<29>();
      mix.template operator()<16>();
      mix.template operator()<24>();
    }
    add(i);
  }
}

/// The sign bit makes an order of signed numbers of one of unsigned.
constexpr uint32_t sign_bit = 0x80000000u;

/// x times scale where the word is not below the limit; both have their sign bit turned.
HWY_INLINE Floats
keep(Floats x, Words word, hn::Vec<hn::Rebind<int32_t, F32>> limit, Floats scale) {
  const hn::Rebind<int32_t, F32> di;
  const auto dropped = hn::Gt(limit, hn::BitCast(di, word));
  return hn::IfThenZeroElse(hn::RebindMask(F32(), dropped), hn::Mul(x, scale));
}

/// What a mask is made of: the key, the number of pairs, and from which word on elements are kept.
struct Mask {
  const uint32_t* key;
  int64_t pairs;
  int32_t limit;
  float scale;
};

/// Pairs [first, first + count) of x, their first elements to `low`, their second ones to `high`.
/// Word i comes from the counters (i, i + pairs).
template <typename T>
HWY_FLATTEN void
dropout_block(const T* x, const Mask& mask, int64_t first, int64_t count, T* low, T* high) {
  const auto limit = hn::Set(hn::Rebind<int32_t, F32>(), mask.limit);
  const Floats scale = number(mask.scale);
  const Keys keys(mask.key, sign_bit);
  Words even;
  Words odd;
  elements_of_two<T>(even, odd);
  const auto places = hn::Iota(U32(), 0);
  auto counter = [&](Words place, int64_t i)
                     HWY_ATTR { return hn::Add(place, hn::Set(U32(), static_cast<uint32_t>(i))); };
  auto keep_two = [&](const T* from, const Words(&words)[2], T* to) HWY_ATTR {
    Floats v;
    Floats w;
    load_two(from, v, w);
    put_two(keep(v, words[0], limit, scale), keep(w, words[1], limit, scale), to);
  };
  over_pairs(
      count,
      [&](int64_t i) HWY_ATTR {
        const int64_t at = first + i;
        Words a[2] = {counter(even, at), counter(odd, at)};
        Words b[2] = {counter(even, at + mask.pairs), counter(odd, at + mask.pairs)};
        threefry<2>(keys, a, b);
        keep_two(x + at, a, low + i);
        keep_two(x + at + mask.pairs, b, high + i);
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        const int64_t at = first + i;
        Words a[1] = {counter(places, at)};
        Words b[1] = {counter(places, at + mask.pairs)};
        threefry<1>(keys, a, b);
        put(keep(load_some(x + at, left), a[0], limit, scale), low + i, left);
        put(keep(load_some(x + at + mask.pairs, left), b[0], limit, scale), high + i, left);
      });
}

void dropout_pairs(
    Dtype dtype,
    const void* x,
    const uint32_t* key,
    float p,
    int64_t n,
    int64_t first,
    int64_t last,
    void* out,
    bool past_cache) {
  const int64_t pairs = cpu::pair_count(n);
  // An element is kept when its word's upper 24 bits are at least p * 2^24.
  const auto least = static_cast<uint32_t>(std::ceil(p * 0x1p24f)) << 8;
  const Mask mask{key, pairs, static_cast<int32_t>(least ^ sign_bit), 1 / (1 - p)};
  with_element_type(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    if (p >= 1) {
      // No word reaches 1.
      std::fill(to + first, to + last, T());
      std::fill(to + first + pairs, to + std::min(last + pairs, n), T());
      return;
    }
    constexpr int64_t block = 1024;
    for (int64_t i = first; i < std::min(last, n / 2); i += block) {
      const int64_t count = std::min(std::min(last, n / 2) - i, block);
      written(to + i, count, past_cache, [&](T* low) HWY_ATTR {
        written(to + i + pairs, count, past_cache, [&](T* high) HWY_ATTR {
          dropout_block(from, mask, i, count, low, high);
        });
      });
    }
    if (n / 2 < pairs && last == pairs && first < last) {
      // The middle one of an odd number is alone, with the counters (n / 2, 0).
      Words a[1] = {hn::Set(U32(), static_cast<uint32_t>(n / 2))};
      Words b[1] = {hn::Zero(U32())};
      threefry<1>(Keys(key, sign_bit), a, b);
      const auto limit = hn::Set(hn::Rebind<int32_t, F32>(), mask.limit);
      put(keep(load_n(from + n / 2, 1), a[0], limit, number(mask.scale)), to + n / 2, 1);
    }
  });
  if (past_cache) {
    hwy::FlushStream();
  }
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

void add_row(
    Dtype dtype,
    const void* a,
    const void* b,
    int64_t n,
    void* out,
    bool past_cache,
    const void* ahead) {
  HWY_DYNAMIC_DISPATCH(add_row)(dtype, a, b, n, out, past_cache, ahead);
}

void dropout_pairs(
    Dtype dtype,
    const void* x,
    const uint32_t* key,
    float p,
    int64_t n,
    int64_t first,
    int64_t last,
    void* out,
    bool past_cache) {
  HWY_DYNAMIC_DISPATCH(dropout_pairs)(dtype, x, key, p, n, first, last, out, past_cache);
}

} // namespace cpu
} // namespace zmlx
#endif
