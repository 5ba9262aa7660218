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

template <typename T>
void softmax_row(const T* x, int64_t n, float scale, bool logarithm, T* out) {
  const auto step = static_cast<int64_t>(lanes());
  const float largest = scale >= 0 ? row_max(x, n) : row_min(x, n);
  const float shift = shift_of(scale * largest);
  const Floats factor = hn::Set(F32(), scale);
  if (logarithm) {
    const Floats less = hn::Set(F32(), shift + std::log(row_exp_sum(x, n, scale, shift)));
    for (int64_t i = 0; i < n; i += step) {
      const auto left = static_cast<size_t>(n - i);
      store_some(hn::MulSub(load_some(x + i, left), factor, less), out + i, left);
    }
    return;
  }
  const Floats less = hn::Set(F32(), shift);
  if (n > kept_row) {
    const Floats part = hn::Set(F32(), 1 / row_exp_sum(x, n, scale, shift));
    for (int64_t i = 0; i < n; i += step) {
      const auto left = static_cast<size_t>(n - i);
      const Floats e = exp(hn::MulSub(load_some(x + i, left), factor, less));
      store_some(hn::Mul(e, part), out + i, left);
    }
    return;
  }
  HWY_ALIGN float row[kept_row + hn::MaxLanes(F32())];
  Floats total = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    Floats e = exp(hn::MulSub(load_some(x + i, left), factor, less));
    if (HWY_UNLIKELY(left < lanes())) {
      e = hn::IfThenElseZero(hn::FirstN(F32(), left), e);
    }
    hn::Store(e, F32(), row + i);
    total = hn::Add(total, e);
  }
  const Floats part = hn::Set(F32(), 1 / sum(total));
  for (int64_t i = 0; i < n; i += step) {
    store_some(hn::Mul(load(row + i), part), out + i, static_cast<size_t>(n - i));
  }
}

void softmax_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    void* out) {
  with_element(dtype, [&]<typename T>(T) {
    for (int64_t r = 0; r < rows; ++r) {
      softmax_row(
          static_cast<const T*>(x) + r * n, n, scale, logarithm, static_cast<T*>(out) + r * n);
    }
  });
}

/// Sums within a vector from its first lane.
HWY_INLINE Floats prefix_sums(Floats v) {
  HWY_ALIGN float part[2 * hn::MaxLanes(F32())] = {};
  const size_t count = lanes();
  for (size_t shift = 1; shift < count; shift *= 2) {
    hn::Store(v, F32(), part + count);
    v = hn::Add(v, hn::LoadU(F32(), part + count - shift));
  }
  return v;
}

void cumsum_rows(Dtype dtype, const void* x, int64_t rows, int64_t n, void* out) {
  with_element(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    const auto step = static_cast<int64_t>(lanes());
    for (int64_t r = 0; r < rows; ++r, from += n, to += n) {
      float before = 0;
      for (int64_t i = 0; i < n; i += step) {
        const auto left = static_cast<size_t>(n - i);
        const Floats sums = hn::Add(prefix_sums(load_some(from + i, left)), hn::Set(F32(), before));
        store_some(sums, to + i, left);
        before = hn::ExtractLane(sums, lanes() - 1);
      }
    }
  });
}

/// Whether a comes before b in descending order, NaN first.
HWY_INLINE bool above(float a, float b) {
  return std::isnan(a) ? !std::isnan(b) : a > b;
}

template <typename T>
void top_k_row(const T* x, int64_t n, int64_t k, float* best, uint32_t* index) {
  const auto step = static_cast<int64_t>(lanes());
  HWY_ALIGN float part[hn::MaxLanes(F32())];
  int64_t held = 0;
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats v = load_some(x + i, left);
    if (held == k) {
      const auto candidates = hn::Or(hn::Gt(v, hn::Set(F32(), best[k - 1])), hn::IsNaN(v));
      if (HWY_LIKELY(hn::AllFalse(F32(), candidates))) {
        continue;
      }
    }
    hn::Store(v, F32(), part);
    const int64_t count = std::min(step, n - i);
    for (int64_t j = 0; j < count; ++j) {
      const float value = part[j];
      if (held == k && !above(value, best[k - 1])) {
        continue;
      }
      int64_t at = held < k ? held++ : k - 1;
      for (; at > 0 && above(value, best[at - 1]); --at) {
        best[at] = best[at - 1];
        index[at] = index[at - 1];
      }
      best[at] = value;
      index[at] = static_cast<uint32_t>(i + j);
    }
  }
}

void top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    void* values,
    uint32_t* indices) {
  with_element(dtype, [&]<typename T>(T) {
    HWY_ALIGN float best[kept_row];
    for (int64_t r = 0; r < rows; ++r) {
      top_k_row(static_cast<const T*>(x) + r * n, n, k, best, indices + r * k);
      auto* to = static_cast<T*>(values) + r * k;
      for (int64_t i = 0; i < k; i += static_cast<int64_t>(lanes())) {
        const auto left = static_cast<size_t>(k - i);
        store_some(load_some(best + i, left), to + i, left);
      }
    }
  });
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
HWY_EXPORT(top_k_rows);
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
    void* out) {
  HWY_DYNAMIC_DISPATCH(softmax_rows)(dtype, x, rows, n, scale, logarithm, out);
}

void cumsum_rows(Dtype dtype, const void* x, int64_t rows, int64_t n, void* out) {
  HWY_DYNAMIC_DISPATCH(cumsum_rows)(dtype, x, rows, n, out);
}

void top_k_rows(
    Dtype dtype,
    const void* x,
    int64_t rows,
    int64_t n,
    int64_t k,
    void* values,
    uint32_t* indices) {
  HWY_DYNAMIC_DISPATCH(top_k_rows)(dtype, x, rows, n, k, values, indices);
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
