// zmlx/kernel/cpu/norms.cpp: gradients of RMS norm and layer norm, for each instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/norms.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <cmath>

#include "zmlx/kernel/cpu/norms.h"
#include "zmlx/kernel/cpu/row_fold-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::NormRows;

template <typename T>
void norm_backward_row(
    const NormRows& norm,
    const T* x,
    const T* dy,
    T* dx,
    float* dweight,
    float* dbias) {
  const int64_t n = norm.n;
  const auto step = static_cast<int64_t>(lanes());
  const auto* weight = static_cast<const T*>(norm.weight);
  const float count = static_cast<float>(n);
  const float middle = norm.layer ? row_sum(x, n) / count : 0;
  const Floats mean = hn::Set(F32(), middle);
  const Floats inverse =
      hn::Set(F32(), 1 / std::sqrt(row_squares(x, n, middle) / count + norm.eps));
  // The cotangent of the normal values, less its mean and its part along them.
  Floats plain = hn::Zero(F32());
  Floats along = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats normal = hn::Mul(hn::Sub(load_some(x + i, left), mean), inverse);
    Floats g = load_some(dy + i, left); // zero past the end
    g = weight ? hn::Mul(g, load_some(weight + i, left)) : g;
    plain = hn::Add(plain, g);
    along = hn::MulAdd(g, normal, along);
  }
  const Floats shift = hn::Set(F32(), norm.layer ? sum(plain) / count : 0);
  const Floats slope = hn::Set(F32(), sum(along) / count);
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats normal = hn::Mul(hn::Sub(load_some(x + i, left), mean), inverse);
    const Floats d = load_some(dy + i, left);
    const Floats g = weight ? hn::Mul(d, load_some(weight + i, left)) : d;
    const Floats rest = hn::NegMulAdd(normal, slope, hn::Sub(g, shift));
    store_some(hn::Mul(rest, inverse), dx + i, left);
    if (dweight) {
      store_some(hn::MulAdd(d, normal, load_some(dweight + i, left)), dweight + i, left);
    }
    if (dbias) {
      store_some(hn::Add(d, load_some(dbias + i, left)), dbias + i, left);
    }
  }
}

void norm_backward_rows(
    const NormRows& norm,
    const void* x,
    const void* dy,
    int64_t rows,
    void* dx,
    float* dweight,
    float* dbias) {
  with_element(norm.dtype, [&]<typename T>(T) {
    for (int64_t at = 0; at < rows * norm.n; at += norm.n) {
      norm_backward_row(
          norm,
          static_cast<const T*>(x) + at,
          static_cast<const T*>(dy) + at,
          static_cast<T*>(dx) + at,
          dweight,
          dbias);
    }
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(norm_backward_rows);

namespace cpu {

void norm_backward_rows(
    const NormRows& norm,
    const void* x,
    const void* dy,
    int64_t rows,
    void* dx,
    float* dweight,
    float* dbias) {
  HWY_DYNAMIC_DISPATCH(norm_backward_rows)(norm, x, dy, rows, dx, dweight, dbias);
}

} // namespace cpu
} // namespace zmlx
#endif
