// zmlx/kernel/cpu/rows.cpp: one row converted, rounded, normalised, activated or added, for each
// instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "zmlx/kernel/cpu/minifloat-inl.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::Quantisation;
using cpu::Weight;
using cpu::WeightFormat;

/// Calls f with a null pointer of the element type.
template <typename F>
void with_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f16:
      return f(static_cast<hwy::float16_t*>(nullptr));
    case Dtype::bf16:
      return f(static_cast<hwy::bfloat16_t*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

/// Calls f(i, left) for each vector of a row of n elements.
template <typename F>
HWY_INLINE void each_vector(int64_t n, F&& f) {
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t i = 0; i < n; i += step) {
    f(i, static_cast<size_t>(n - i));
  }
}

void load_row(Dtype dtype, const void* from, float* to, int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
      store_some(load_some(static_cast<const T*>(from) + i, left), to + i, left);
    });
  });
}

void store_row(Dtype dtype, const float* from, void* to, int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
      store_some(load_some(from + i, left), static_cast<T*>(to) + i, left);
    });
  });
}

void round_row(Dtype dtype, float* x, int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
      store_some(round_to<T>(load_some(x + i, left)), x + i, left);
    });
  });
}

void rms_norm_row(Dtype dtype, const void* x, const void* weight, float eps, void* out, int64_t n) {
  with_type(dtype, [&]<typename T>(T*) {
    auto* from = static_cast<const T*>(x);
    const Floats inverse = hn::Set(F32(), inverse_rms(from, static_cast<size_t>(n), eps));
    each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
      Floats normal = round_to<T>(hn::Mul(load_some(from + i, left), inverse));
      if (weight) {
        normal = hn::Mul(normal, load_some(static_cast<const T*>(weight) + i, left));
      }
      store_some(normal, static_cast<T*>(out) + i, left);
    });
  });
}

void swiglu_row(Dtype dtype, float* gate, const float* up, int64_t n, bool exact) {
  with_type(exact ? dtype : Dtype::f32, [&]<typename T>(T*) {
    each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
      Floats g = load_some(gate + i, left);
      Floats silu = round_to<T>(hn::Mul(g, round_to<T>(sigmoid(g))));
      store_some(round_to<T>(hn::Mul(silu, load_some(up + i, left))), gate + i, left);
    });
  });
}

void scale_row(float scale, float* x, int64_t n) {
  const Floats factor = hn::Set(F32(), scale);
  each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
    store_some(hn::Mul(factor, load_some(x + i, left)), x + i, left);
  });
}

void axpy_row(float scale, const float* x, float* acc, int64_t n) {
  const Floats factor = hn::Set(F32(), scale);
  each_vector(n, [&](int64_t i, size_t left) HWY_ATTR {
    store_some(hn::MulAdd(factor, load_some(x + i, left), load_some(acc + i, left)), acc + i, left);
  });
}

// Elements that one step decodes: whole bytes of codes, and never more than a group.
constexpr int64_t decoded = std::max<int64_t>(8, hn::MaxLanes(F32()));

/// Where the codes of a step lie in words loaded from its first byte.
template <int Bits>
struct CodePlaces {
  alignas(64) int32_t word[decoded];
  alignas(64) int32_t next[decoded];
  alignas(64) uint32_t shift[decoded];

  constexpr CodePlaces() : word(), next(), shift() {
    constexpr auto last = static_cast<int32_t>(hn::MaxLanes(F32())) - 1;
    for (int i = 0; i < decoded; ++i) {
      word[i] = i * Bits / 32;
      next[i] = word[i] < last ? word[i] + 1 : last;
      shift[i] = static_cast<uint32_t>(i * Bits % 32);
    }
  }
};
template <int Bits>
constexpr CodePlaces<Bits> code_places;

/// The codes of one step to `codes`; `left` bytes may be read.
template <int Bits>
HWY_INLINE void unpack(const uint8_t* from, int64_t left, uint32_t* codes) {
#if HWY_TARGET == HWY_SCALAR
  (void)left;
  uint64_t eight = 0;
  std::memcpy(&eight, from, Bits);
  for (int i = 0; i < 8; ++i) {
    codes[i] = static_cast<uint32_t>(eight >> (i * Bits)) & ((1u << Bits) - 1);
  }
#else
  const U32 d;
  const hn::Repartition<uint8_t, U32> bytes;
  constexpr auto whole = static_cast<int64_t>(hn::MaxLanes(bytes));
  HWY_ALIGN uint8_t part[whole] = {};
  if (HWY_UNLIKELY(left < whole)) {
    std::memcpy(part, from, static_cast<size_t>(std::min(left, decoded * Bits / 8)));
    from = part;
  }
  const auto words = hn::BitCast(d, hn::LoadU(bytes, from));
  for (int64_t i = 0; i < decoded; i += static_cast<int64_t>(lanes())) {
    const auto& at = code_places<Bits>;
    const auto shift = hn::Load(d, at.shift + i);
    auto code = hn::Shr(hn::TableLookupLanes(words, hn::SetTableIndices(d, at.word + i)), shift);
    if constexpr (32 % Bits != 0) {
      // By 32 - shift in two parts, since that may be 32.
      const auto next = hn::TableLookupLanes(words, hn::SetTableIndices(d, at.next + i));
      const auto rest = hn::Sub(hn::Set(d, 31u), shift);
      code = hn::Or(code, hn::Shl(hn::ShiftLeft<1>(next), rest));
    }
    hn::Store(hn::And(code, hn::Set(d, (1u << Bits) - 1)), d, codes + i);
  }
#endif
}

/// One group, or its part, with f(codes) the value of a vector of codes without the scale.
template <int Bits, typename F>
HWY_INLINE void decode_group(
    const uint8_t* codes,
    int64_t left,
    int64_t n,
    float scale,
    float bias,
    float* to,
    F&& f) {
  HWY_ALIGN uint32_t step[decoded];
  const Floats s = hn::Set(F32(), scale);
  const Floats b = hn::Set(F32(), bias);
  for (int64_t i = 0; i < n; i += decoded) {
    unpack<Bits>(codes + i * Bits / 8, left - i * Bits / 8, step);
    for (int64_t v = 0; v < decoded && i + v < n; v += static_cast<int64_t>(lanes())) {
      const Floats value = hn::MulAdd(f(hn::Load(U32(), step + v)), s, b);
      store_some(value, to + i + v, static_cast<size_t>(n - i - v));
    }
  }
}

template <int Bits, typename F, typename Scale>
void decode_groups(
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to,
    Scale&& scale,
    F&& f) {
  const auto* codes = static_cast<const uint8_t*>(weight.codes);
  const int64_t end = first + n;
  for (int64_t at = first; at < end;) {
    const int64_t group = at / format.group_size;
    const int64_t count = std::min((group + 1) * format.group_size, end) - at;
    const auto [factor, bias] = scale(group);
    decode_group<Bits>(
        codes + at / 8 * Bits, (end - at) * Bits / 8, count, factor, bias, to + at - first, f);
    at += count;
  }
}

template <int Bits, typename T>
void dequantise_affine(
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to) {
  auto at = [](const void* row, int64_t group)
                HWY_ATTR { return hn::GetLane(load_n(static_cast<const T*>(row) + group, 1)); };
  auto scale = [&](int64_t group) {
    return std::pair(at(weight.scales, group), at(weight.biases, group));
  };
  auto value = [](hn::Vec<U32> code) HWY_ATTR {
    return hn::ConvertTo(F32(), hn::BitCast(hn::Rebind<int32_t, F32>(), code));
  };
  decode_groups<Bits>(format, weight, first, n, to, scale, value);
}

void dequantise(
    Dtype dtype,
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to) {
  const auto* scales = static_cast<const uint8_t*>(weight.scales);
  auto mx_scale = [=](int64_t group) { return std::pair(cpu::from_e8m0(scales[group]), -0.0f); };
  auto nv_scale = [=](int64_t group) { return std::pair(cpu::from_e4m3(scales[group]), -0.0f); };
  auto fp4 = [](hn::Vec<U32> code) HWY_ATTR { return from_e2m1(F32(), code); };
  auto fp8 = [](hn::Vec<U32> code) HWY_ATTR { return from_e4m3(code); };
  switch (format.mode) {
    case Quantisation::mxfp4:
      return decode_groups<4>(format, weight, first, n, to, mx_scale, fp4);
    case Quantisation::nvfp4:
      return decode_groups<4>(format, weight, first, n, to, nv_scale, fp4);
    case Quantisation::mxfp8:
      return decode_groups<8>(format, weight, first, n, to, mx_scale, fp8);
    case Quantisation::affine:
      break;
  }
  with_type(dtype, [&]<typename T>(T*) {
    switch (format.bits) {
      case 2:
        return dequantise_affine<2, T>(format, weight, first, n, to);
      case 3:
        return dequantise_affine<3, T>(format, weight, first, n, to);
      case 4:
        return dequantise_affine<4, T>(format, weight, first, n, to);
      case 5:
        return dequantise_affine<5, T>(format, weight, first, n, to);
      case 6:
        return dequantise_affine<6, T>(format, weight, first, n, to);
      default:
        return dequantise_affine<8, T>(format, weight, first, n, to);
    }
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(load_row);
HWY_EXPORT(store_row);
HWY_EXPORT(round_row);
HWY_EXPORT(rms_norm_row);
HWY_EXPORT(swiglu_row);
HWY_EXPORT(scale_row);
HWY_EXPORT(axpy_row);
HWY_EXPORT(dequantise);

namespace cpu {

void load_row(Dtype dtype, const void* from, float* to, int64_t n) {
  HWY_DYNAMIC_DISPATCH(load_row)(dtype, from, to, n);
}

void store_row(Dtype dtype, const float* from, void* to, int64_t n) {
  HWY_DYNAMIC_DISPATCH(store_row)(dtype, from, to, n);
}

void round_row(Dtype dtype, float* x, int64_t n) {
  HWY_DYNAMIC_DISPATCH(round_row)(dtype, x, n);
}

void rms_norm_row(Dtype dtype, const void* x, const void* weight, float eps, void* out, int64_t n) {
  HWY_DYNAMIC_DISPATCH(rms_norm_row)(dtype, x, weight, eps, out, n);
}

void swiglu_row(Dtype dtype, float* gate, const float* up, int64_t n, bool exact) {
  HWY_DYNAMIC_DISPATCH(swiglu_row)(dtype, gate, up, n, exact);
}

void scale_row(float scale, float* x, int64_t n) {
  HWY_DYNAMIC_DISPATCH(scale_row)(scale, x, n);
}

void axpy_row(float scale, const float* x, float* acc, int64_t n) {
  HWY_DYNAMIC_DISPATCH(axpy_row)(scale, x, acc, n);
}

void dequantise(
    Dtype dtype,
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to) {
  HWY_DYNAMIC_DISPATCH(dequantise)(dtype, format, weight, first, n, to);
}

} // namespace cpu
} // namespace zmlx
#endif
