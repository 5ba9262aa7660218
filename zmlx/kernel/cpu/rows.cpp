// zmlx/kernel/cpu/rows.cpp: one row converted, rounded, normalised, activated or added, for each
// instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/rows.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <cmath>
#include <cstring>

#include "zmlx/kernel/cpu/minifloat.h"
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
      Floats scaled = hn::Mul(normal, load_some(static_cast<const T*>(weight) + i, left));
      store_some(scaled, static_cast<T*>(out) + i, left);
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

template <typename T>
void dequantise_affine(
    WeightFormat format,
    const Weight& weight,
    T*,
    int64_t first,
    int64_t n,
    float* to) {
  const auto bits = static_cast<size_t>(format.bits);
  auto* codes = static_cast<const uint8_t*>(weight.codes) + first / 8 * format.bits;
  for (int64_t i = 0; i < n; i += 8, codes += bits) {
    const int64_t group = (first + i) / format.group_size;
    const float scale = sum(load_n(static_cast<const T*>(weight.scales) + group, 1));
    const float bias = sum(load_n(static_cast<const T*>(weight.biases) + group, 1));
    uint64_t eight = 0; // eight codes fill `bits` bytes
    std::memcpy(&eight, codes, bits);
    for (size_t c = 0; c < 8; ++c) {
      const auto code = static_cast<float>((eight >> (c * bits)) & ((1u << bits) - 1));
      to[static_cast<size_t>(i) + c] = std::fma(code, scale, bias);
    }
  }
}

void dequantise(
    Dtype dtype,
    WeightFormat format,
    const Weight& weight,
    int64_t first,
    int64_t n,
    float* to) {
  const auto* codes = static_cast<const uint8_t*>(weight.codes);
  const auto* scales = static_cast<const uint8_t*>(weight.scales);
  switch (format.mode) {
    case Quantisation::affine:
      return with_type(dtype, [&]<typename T>(T*) {
        dequantise_affine(format, weight, static_cast<T*>(nullptr), first, n, to);
      });
    case Quantisation::mxfp8:
      for (int64_t i = 0; i < n; ++i) {
        to[i] = cpu::from_e4m3(codes[first + i]) *
            cpu::from_e8m0(scales[(first + i) / format.group_size]);
      }
      return;
    default:
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = first + i;
        const uint32_t scale = scales[at / format.group_size];
        to[i] = cpu::from_e2m1(codes[at / 2] >> (at % 2 * 4) & 15u) *
            (format.mode == Quantisation::nvfp4 ? cpu::from_e4m3(scale) : cpu::from_e8m0(scale));
      }
  }
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
