// zmlx/kernel/cpu/row_ops.cpp: one row reduced, normalised, searched or activated, for each
// instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/row_ops.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "zmlx/kernel/cpu/row_fold-inl.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/stream-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::Reduction;

template <typename T>
float row_variance(const T* x, int64_t n, int64_t ddof) {
  const float mean = row_sum(x, n) / static_cast<float>(n);
  return row_squares(x, n, mean) / static_cast<float>(std::max(n - ddof, int64_t{0}));
}

void reduce_rows(
    Reduction what,
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t ddof,
    void* out) {
  with_element(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    for (int64_t r = 0; r < rows; ++r, from += n) {
      float y = 0;
      switch (what) {
        case Reduction::sum:
          y = row_sum(from, n);
          break;
        case Reduction::mean:
          y = row_sum(from, n) / static_cast<float>(n);
          break;
        case Reduction::max:
          y = row_max(from, n);
          break;
        case Reduction::min:
          y = row_min(from, n);
          break;
        case Reduction::logsumexp:
          y = row_logsumexp(from, n);
          break;
        case Reduction::prod:
          y = row_prod(from, n);
          break;
        case Reduction::var:
          y = row_variance(from, n, ddof);
          break;
        case Reduction::std:
          y = std::sqrt(row_variance(from, n, ddof));
          break;
      }
      store_n(hn::Set(F32(), y), to + r, 1);
    }
  });
}

template <typename T>
uint32_t arg_row(bool largest, const T* x, int64_t n) {
  const float best = largest ? row_max(x, n) : row_min(x, n);
  const Floats wanted = hn::Set(F32(), best);
  const auto step = static_cast<int64_t>(lanes());
  for (int64_t i = 0; i < n; i += step) {
    const Floats v = load_some(x + i, static_cast<size_t>(n - i));
    const auto found = std::isnan(best) ? hn::IsNaN(v) : hn::Eq(v, wanted);
    if (!hn::AllFalse(F32(), found)) {
      return static_cast<uint32_t>(i + hn::FindFirstTrue(F32(), found));
    }
  }
  return 0;
}

void arg_rows(bool largest, Dtype dtype, const void* x, int64_t rows, int64_t n, uint32_t* out) {
  with_element(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    for (int64_t r = 0; r < rows; ++r) {
      out[r] = arg_row(largest, from + r * n, n);
    }
  });
}

struct Most {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    return hn::Max(a, b);
  }
};
struct Least {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    return hn::Min(a, b);
  }
};

/// What softmax takes off scale * x. A NaN may be passed over: the sum of exp is then NaN.
template <typename T>
HWY_INLINE float softmax_shift(const T* x, int64_t n, float scale) {
  const float largest = scale >= 0 ? hn::GetLane(hn::MaxOfLanes(F32(), fold(x, n, -inf, Most())))
                                   : hn::GetLane(hn::MinOfLanes(F32(), fold(x, n, inf, Least())));
  return shift_of(scale * largest);
}

template <typename T>
HWY_FLATTEN void softmax_row(const T* x, int64_t n, float scale, bool logarithm, T* out) {
  const float shift = softmax_shift(x, n, scale);
  const Floats factor = hn::Set(F32(), scale);
  if (logarithm) {
    const Floats less = hn::Set(F32(), shift + std::log(row_exp_sum(x, n, scale, shift)));
    auto log = [&](Floats v) HWY_ATTR { return hn::MulSub(v, factor, less); };
    return map_row(n, out, Nothing(), log, x);
  }
  const Floats less = hn::Set(F32(), shift);
  // Multiplied last: the largest element's difference is exactly 0, however large it is.
  const Floats unit = hn::Set(F32(), exp_unit<T>);
  auto exp_of = [&](Floats v) HWY_ATTR {
    return exp_in_units<T, true>(hn::Mul(hn::MulSub(v, factor, less), unit));
  };
  if (n > kept_row) {
    const Floats part = hn::Set(F32(), 1 / row_exp_sum(x, n, scale, shift));
    auto share = [&](Floats v) HWY_ATTR { return hn::Mul(exp_of(v), part); };
    return map_row(n, out, Nothing(), share, x);
  }
  HWY_ALIGN float row[kept_row + hn::MaxLanes(F32())];
  const auto step = static_cast<int64_t>(lanes());
  Floats total = hn::Zero(F32());
  Floats more = total;
  over_pairs(
      n,
      [&](int64_t i) HWY_ATTR {
        // While this row is worked on the next one can come.
        fetch_two(x + i + n);
        Floats a, b;
        load_two(x + i, a, b);
        a = exp_of(a);
        b = exp_of(b);
        hn::Store(a, F32(), row + i);
        hn::Store(b, F32(), row + i + step);
        total = hn::Add(total, a);
        more = hn::Add(more, b);
      },
      [&](int64_t i, size_t left) HWY_ATTR {
        Floats e = exp_of(load_some(x + i, left));
        if (left < lanes()) {
          e = hn::IfThenElseZero(hn::FirstN(F32(), left), e);
        }
        hn::Store(e, F32(), row + i);
        total = hn::Add(total, e);
      });
  const Floats part = hn::Set(F32(), 1 / sum(hn::Add(total, more)));
  over_pairs(
      n,
      [&](int64_t i) HWY_ATTR {
        put_two(hn::Mul(load(row + i), part), hn::Mul(load(row + i + step), part), out + i);
      },
      [&](int64_t i, size_t left) HWY_ATTR { put(hn::Mul(load(row + i), part), out + i, left); });
}

void softmax_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    bool past_cache,
    void* out) {
  with_element(dtype, [&]<typename T>(T) {
    for (int64_t at = 0; at < rows * n; at += n) {
      written(static_cast<T*>(out) + at, n, past_cache, [&](T* to) HWY_ATTR {
        softmax_row(static_cast<const T*>(x) + at, n, scale, logarithm, to);
      });
    }
  });
  if (past_cache) {
    hwy::FlushStream();
  }
}

/// Sums within a vector from its first lane.
HWY_INLINE Floats prefix_sums(Floats v) {
#if HWY_TARGET == HWY_AVX2
  // Within each half, then the lower half's last sum onto the upper half.
  v = hn::Add(v, hn::ShiftLeftLanes<1>(F32(), v));
  v = hn::Add(v, hn::ShiftLeftLanes<2>(F32(), v));
  const Floats last = hn::Broadcast<3>(v);
  return hn::Add(v, hn::ConcatLowerLower(F32(), last, hn::Zero(F32())));
#elif HWY_TARGET == HWY_AVX3
  const __m512i zero = _mm512_setzero_si512();
  auto add_from = [&]<int distance>() HWY_ATTR {
    const __m512i shifted = _mm512_alignr_epi32(_mm512_castps_si512(v.raw), zero, 16 - distance);
    v = hn::Add(v, Floats{_mm512_castsi512_ps(shifted)});
  };
  add_from.template operator()<1>();
  add_from.template operator()<2>();
  add_from.template operator()<4>();
  add_from.template operator()<8>();
  return v;
#else
  HWY_ALIGN float part[2 * hn::MaxLanes(F32())] = {};
  const size_t count = lanes();
  for (size_t shift = 1; shift < count; shift *= 2) {
    hn::Store(v, F32(), part + count);
    v = hn::Add(v, hn::LoadU(F32(), part + count - shift));
  }
  return v;
#endif
}

/// The last lane in every lane.
HWY_INLINE Floats last_lane(Floats v) {
#if HWY_TARGET == HWY_AVX2
  return hn::Broadcast<3>(hn::ConcatUpperUpper(F32(), v, v));
#elif HWY_TARGET == HWY_AVX3
  return Floats{_mm512_permutexvar_ps(_mm512_set1_epi32(15), v.raw)};
#else
  return hn::Set(F32(), hn::ExtractLane(v, lanes() - 1));
#endif
}

template <typename T>
HWY_FLATTEN void cumsum_row(const T* x, int64_t n, T* out) {
  Floats before = hn::Zero(F32()); // all that is carried from vector to vector
  const int64_t ahead = cpu::row_ahead(n, sizeof(T));
  over_vectors(n, [&](int64_t i, size_t left) HWY_ATTR {
    __builtin_prefetch(x + i + ahead, 0, 2);
    const Floats sums = prefix_sums(load_some(x + i, left));
    put(hn::Add(sums, before), out + i, left);
    before = hn::Add(before, last_lane(sums));
  });
}

void cumsum_rows(Dtype dtype, const void* x, int64_t rows, int64_t n, bool past_cache, void* out) {
  with_element(dtype, [&]<typename T>(T) {
    for (int64_t at = 0; at < rows * n; at += n) {
      written(static_cast<T*>(out) + at, n, past_cache, [&](T* to) HWY_ATTR {
        cumsum_row(static_cast<const T*>(x) + at, n, to);
      });
    }
  });
  if (past_cache) {
    hwy::FlushStream();
  }
}

void layer_norm_rows(
    Dtype dtype,
    const void* x,
    const void* weight,
    const void* bias,
    float eps,
    int64_t rows,
    int64_t n,
    void* out) {
  with_element(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    const auto step = static_cast<int64_t>(lanes());
    for (int64_t r = 0; r < rows; ++r, from += n, to += n) {
      const float mean = row_sum(from, n) / static_cast<float>(n);
      const Floats middle = hn::Set(F32(), mean);
      const float variance = row_squares(from, n, mean) / static_cast<float>(n);
      const Floats inverse = hn::Set(F32(), 1 / std::sqrt(variance + eps));
      for (int64_t i = 0; i < n; i += step) {
        const auto left = static_cast<size_t>(n - i);
        Floats y = hn::Mul(hn::Sub(load_some(from + i, left), middle), inverse);
        if (weight) {
          y = hn::Mul(y, load_some(static_cast<const T*>(weight) + i, left));
        }
        if (bias) {
          y = hn::Add(y, load_some(static_cast<const T*>(bias) + i, left));
        }
        store_some(y, to + i, left);
      }
    }
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(reduce_rows);
HWY_EXPORT(arg_rows);
HWY_EXPORT(softmax_rows);
HWY_EXPORT(cumsum_rows);
HWY_EXPORT(layer_norm_rows);

namespace cpu {

void reduce_rows(
    Reduction what,
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t ddof,
    void* out) {
  HWY_DYNAMIC_DISPATCH(reduce_rows)(what, dtype, x, rows, n, ddof, out);
}

void arg_rows(bool largest, Dtype dtype, const void* x, int64_t rows, int64_t n, uint32_t* out) {
  HWY_DYNAMIC_DISPATCH(arg_rows)(largest, dtype, x, rows, n, out);
}

void softmax_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    bool past_cache,
    void* out) {
  HWY_DYNAMIC_DISPATCH(softmax_rows)(dtype, x, rows, n, scale, logarithm, past_cache, out);
}

void cumsum_rows(Dtype dtype, const void* x, int64_t rows, int64_t n, bool past_cache, void* out) {
  HWY_DYNAMIC_DISPATCH(cumsum_rows)(dtype, x, rows, n, past_cache, out);
}

void layer_norm_rows(
    Dtype dtype,
    const void* x,
    const void* weight,
    const void* bias,
    float eps,
    int64_t rows,
    int64_t n,
    void* out) {
  HWY_DYNAMIC_DISPATCH(layer_norm_rows)(dtype, x, weight, bias, eps, rows, n, out);
}

} // namespace cpu
} // namespace zmlx
#endif
