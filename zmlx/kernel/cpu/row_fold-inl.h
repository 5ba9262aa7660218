// zmlx/kernel/cpu/row_fold-inl.h: a row of f32, f16 or bf16 folded into one number. Included once
// for each instruction set.
#include <cmath>
#include <cstdint>
#include <limits>

#include "zmlx/kernel/cpu/stream-inl.h"

#if defined(ZMLX_KERNEL_CPU_ROW_FOLD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_ROW_FOLD_INL_H_
#undef ZMLX_KERNEL_CPU_ROW_FOLD_INL_H_
#else
#define ZMLX_KERNEL_CPU_ROW_FOLD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

inline constexpr float inf = std::numeric_limits<float>::infinity();
// Elements of a row that are kept in float32 between two passes; longer rows are read again.
inline constexpr int64_t kept_row = 4096;

template <typename F>
void with_element(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f16:
      return f(hwy::float16_t());
    case Dtype::bf16:
      return f(hwy::bfloat16_t());
    default:
      return f(0.0f);
  }
}

/// Folds vectors of a row into four accumulators, in a fixed order, then those into one. What lies
/// past the end counts as `neutral`.
template <typename T, typename F>
HWY_INLINE Floats fold(const T* x, int64_t n, float neutral, F&& f) {
  const auto step = static_cast<int64_t>(lanes());
  const int64_t ahead = cpu::row_ahead(n, sizeof(T));
  Floats a0 = hn::Set(F32(), neutral);
  Floats a1 = a0;
  Floats a2 = a0;
  Floats a3 = a0;
  int64_t i = 0;
  for (; i + 4 * step <= n; i += 4 * step) {
    fetch_two(x + i + ahead);
    fetch_two(x + i + ahead + 2 * step);
    Floats x0, x1, x2, x3;
    load_two(x + i, x0, x1);
    load_two(x + i + 2 * step, x2, x3);
    a0 = f(a0, x0);
    a1 = f(a1, x1);
    a2 = f(a2, x2);
    a3 = f(a3, x3);
  }
  for (; i + step <= n; i += step) {
    a0 = f(a0, load(x + i));
  }
  if (i < n) {
    const auto left = static_cast<size_t>(n - i);
    const Floats rest =
        hn::IfThenElse(hn::FirstN(F32(), left), load_n(x + i, left), hn::Set(F32(), neutral));
    a1 = f(a1, rest);
  }
  return f(f(a0, a1), f(a2, a3));
}

struct Plus {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    return hn::Add(a, b);
  }
};
struct Times {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    return hn::Mul(a, b);
  }
};
// A NaN on either side stays.
struct Larger {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    const Floats m = hn::IfThenElse(hn::Gt(a, b), a, b);
    return hn::IfThenElse(hn::IsNaN(a), a, m);
  }
};
struct Smaller {
  HWY_INLINE Floats operator()(Floats a, Floats b) const {
    const Floats m = hn::IfThenElse(hn::Lt(a, b), a, b);
    return hn::IfThenElse(hn::IsNaN(a), a, m);
  }
};

/// One number from a vector of accumulators.
template <typename F>
HWY_INLINE float across(Floats v, F&& f) {
  HWY_ALIGN float part[hn::MaxLanes(F32())];
  hn::Store(v, F32(), part);
  float all = part[0];
  for (size_t i = 1; i < lanes(); ++i) {
    all = f(all, part[i]);
  }
  return all;
}

HWY_INLINE float larger(float a, float b) {
  return std::isnan(a) || a > b ? a : b;
}
HWY_INLINE float smaller(float a, float b) {
  return std::isnan(a) || a < b ? a : b;
}

template <typename T>
HWY_INLINE float row_sum(const T* x, int64_t n) {
  return sum(fold(x, n, 0, Plus()));
}
template <typename T>
HWY_INLINE float row_prod(const T* x, int64_t n) {
  return across(fold(x, n, 1, Times()), [](float a, float b) { return a * b; });
}
template <typename T>
HWY_INLINE float row_max(const T* x, int64_t n) {
  return across(fold(x, n, -inf, Larger()), larger);
}
template <typename T>
HWY_INLINE float row_min(const T* x, int64_t n) {
  return across(fold(x, n, inf, Smaller()), smaller);
}

/// Sum of (x - mean)^2: a pass of its own, because E[x^2] - E[x]^2 cancels.
template <typename T>
HWY_INLINE float row_squares(const T* x, int64_t n, float mean) {
  const Floats middle = hn::Set(F32(), mean);
  const auto step = static_cast<int64_t>(lanes());
  Floats s0 = hn::Zero(F32());
  Floats s1 = s0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    Floats a, b;
    load_two(x + i, a, b);
    a = hn::Sub(a, middle);
    b = hn::Sub(b, middle);
    s0 = hn::MulAdd(a, a, s0);
    s1 = hn::MulAdd(b, b, s1);
  }
  for (; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    Floats d = hn::Sub(load_some(x + i, left), middle);
    d = hn::IfThenElseZero(hn::FirstN(F32(), left), d);
    s0 = hn::MulAdd(d, d, s0);
  }
  return sum(hn::Add(s0, s1));
}

/// What softmax takes off before exp: no more than a finite number, so that inf - inf does not
/// arise for rows of -inf.
HWY_INLINE float shift_of(float largest) {
  return std::isinf(largest) && largest < 0 ? 0 : largest;
}

/// Sum of exp(scale * x - shift).
template <typename T>
HWY_INLINE float row_exp_sum(const T* x, int64_t n, float scale, float shift) {
  const Floats factor = hn::Set(F32(), scale);
  const Floats less = hn::Set(F32(), shift);
  const auto step = static_cast<int64_t>(lanes());
  Floats s0 = hn::Zero(F32());
  Floats s1 = s0;
  int64_t i = 0;
  for (; i + 2 * step <= n; i += 2 * step) {
    Floats a, b;
    load_two(x + i, a, b);
    s0 = hn::Add(s0, exp(hn::MulSub(a, factor, less)));
    s1 = hn::Add(s1, exp(hn::MulSub(b, factor, less)));
  }
  for (; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats e = exp(hn::MulSub(load_some(x + i, left), factor, less));
    s0 = hn::Add(s0, hn::IfThenElseZero(hn::FirstN(F32(), left), e));
  }
  return sum(hn::Add(s0, s1));
}

template <typename T>
HWY_INLINE float row_logsumexp(const T* x, int64_t n) {
  const float largest = row_max(x, n);
  if (std::isinf(largest) || std::isnan(largest)) {
    return largest;
  }
  return largest + std::log(row_exp_sum(x, n, 1, largest));
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
