// zmlx/kernel/cpu/softmax.cpp: softmax of masked rows, gradients of softmax, and cross entropy, for
// each instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/softmax.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <cmath>

#include "zmlx/kernel/cpu/row_fold-inl.h"
#include "zmlx/kernel/cpu/softmax.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::RowMask;

/// scale * x + mask at any place of a row.
template <typename T, typename M>
struct MaskedLogits {
  const T* x;
  const M* mask;
  bool one;
  float scale;

  HWY_INLINE Floats operator()(int64_t i, size_t left) const {
    const Floats v = hn::Mul(load_some(x + i, left), hn::Set(F32(), scale));
    if constexpr (std::is_same_v<M, uint8_t>) {
      const Floats out = hn::Set(F32(), -inf);
      if (one) {
        return *mask ? v : out;
      }
      HWY_ALIGN float keep[hn::MaxLanes(F32())];
      for (size_t j = 0; j < std::min(left, lanes()); ++j) {
        keep[j] = mask[static_cast<size_t>(i) + j];
      }
      return hn::IfThenElse(hn::Ne(hn::Load(F32(), keep), hn::Zero(F32())), v, out);
    } else {
      const Floats bias =
          one ? hn::Set(F32(), hn::GetLane(load_n(mask, 1))) : load_some(mask + i, left);
      return hn::Add(v, bias);
    }
  }
};

struct Kept {
  const float* row;

  HWY_INLINE Floats operator()(int64_t i, size_t) const {
    return hn::LoadU(F32(), row + i);
  }
};

HWY_INLINE Floats first_or(Floats v, size_t left, float otherwise) {
  return HWY_LIKELY(left >= lanes())
      ? v
      : hn::IfThenElse(hn::FirstN(F32(), left), v, hn::Set(F32(), otherwise));
}

/// softmax of the values that `value(i, left)` gives.
template <typename V, typename T>
HWY_INLINE void softmax_of(const V& value, int64_t n, T* out) {
  const auto step = static_cast<int64_t>(lanes());
  Floats most = hn::Set(F32(), -inf);
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    most = Larger()(most, first_or(value(i, left), left, -inf));
  }
  const float largest = across(most, larger);
  const bool nothing = std::isinf(largest) && largest < 0;
  const Floats less = hn::Set(F32(), largest);
  Floats total = hn::Zero(F32());
  for (int64_t i = 0; i < n && !nothing; i += step) {
    const auto left = static_cast<size_t>(n - i);
    total = hn::Add(total, first_or(exp(hn::Sub(value(i, left), less)), left, 0));
  }
  const Floats part = hn::Set(F32(), 1 / sum(total));
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats y = nothing ? hn::Zero(F32()) : hn::Mul(exp(hn::Sub(value(i, left), less)), part);
    store_some(y, out + i, left);
  }
}

template <typename T, typename M>
void masked_row(const MaskedLogits<T, M>& logits, int64_t n, T* out) {
  if (n > kept_row) {
    return softmax_of(logits, n, out);
  }
  HWY_ALIGN float row[kept_row + hn::MaxLanes(F32())];
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(lanes())) {
    hn::Store(logits(i, static_cast<size_t>(n - i)), F32(), row + i);
  }
  softmax_of(Kept{row}, n, out);
}

void masked_softmax_row(
    Dtype dtype,
    const void* x,
    const RowMask& mask,
    float scale,
    int64_t n,
    void* out) {
  with_element(dtype, [&]<typename T>(T) {
    auto* from = static_cast<const T*>(x);
    auto* to = static_cast<T*>(out);
    if (mask.dtype == Dtype::boolean) {
      masked_row<T, uint8_t>(
          {from, static_cast<const uint8_t*>(mask.data), mask.one, scale}, n, to);
    } else if (mask.dtype == Dtype::f32) {
      masked_row<T, float>({from, static_cast<const float*>(mask.data), mask.one, scale}, n, to);
    } else {
      masked_row<T, T>({from, static_cast<const T*>(mask.data), mask.one, scale}, n, to);
    }
  });
}

template <typename T>
void softmax_backward_row(const T* y, const T* dy, int64_t n, float scale, bool logarithm, T* dx) {
  const auto step = static_cast<int64_t>(lanes());
  Floats total = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats g = load_some(dy + i, left);
    total = logarithm ? hn::Add(total, g) : hn::MulAdd(g, load_some(y + i, left), total);
  }
  const Floats dot = hn::Set(F32(), sum(total));
  const Floats factor = hn::Set(F32(), scale);
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats g = load_some(dy + i, left);
    const Floats v = load_some(y + i, left);
    const Floats d = logarithm ? hn::NegMulAdd(exp(v), dot, g) : hn::Mul(v, hn::Sub(g, dot));
    store_some(hn::Mul(factor, d), dx + i, left);
  }
}

void softmax_backward_rows(
    Dtype dtype,
    const void* y,
    const void* dy,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    void* dx) {
  with_element(dtype, [&]<typename T>(T) {
    for (int64_t at = 0; at < rows * n; at += n) {
      softmax_backward_row(
          static_cast<const T*>(y) + at,
          static_cast<const T*>(dy) + at,
          n,
          scale,
          logarithm,
          static_cast<T*>(dx) + at);
    }
  });
}

template <typename T>
float loss_of(const T* logits, int64_t n, int64_t target, float smoothing) {
  const float hit = sum(load_n(logits + target, 1));
  const float all = row_logsumexp(logits, n);
  const float loss = all - hit;
  if (smoothing == 0) {
    return loss;
  }
  return (1 - smoothing) * loss + smoothing * (all - row_sum(logits, n) / static_cast<float>(n));
}

float cross_entropy_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing) {
  float loss = 0;
  with_element(dtype, [&]<typename T>(T) {
    loss = loss_of(static_cast<const T*>(logits), n, target, smoothing);
  });
  return loss;
}

template <typename T>
void loss_backward(const T* logits, int64_t n, int64_t target, float smoothing, float dy, T* dx) {
  const auto step = static_cast<int64_t>(lanes());
  const Floats less = hn::Set(F32(), row_logsumexp(logits, n));
  const Floats share = hn::Set(F32(), smoothing / static_cast<float>(n));
  const Floats factor = hn::Set(F32(), dy);
  for (int64_t i = 0; i < n; i += step) {
    const auto left = static_cast<size_t>(n - i);
    const Floats y = exp(hn::Sub(load_some(logits + i, left), less));
    store_some(hn::Mul(factor, hn::Sub(y, share)), dx + i, left);
  }
  const Floats hit = exp(hn::Sub(load_n(logits + target, 1), less));
  const Floats wanted = hn::Add(share, hn::Set(F32(), 1 - smoothing));
  store_n(hn::Mul(factor, hn::Sub(hit, wanted)), dx + target, 1);
}

void cross_entropy_backward_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing,
    float dy,
    void* dx) {
  with_element(dtype, [&]<typename T>(T) {
    loss_backward(static_cast<const T*>(logits), n, target, smoothing, dy, static_cast<T*>(dx));
  });
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(masked_softmax_row);
HWY_EXPORT(softmax_backward_rows);
HWY_EXPORT(cross_entropy_row);
HWY_EXPORT(cross_entropy_backward_row);

namespace cpu {

void masked_softmax_row(
    Dtype dtype,
    const void* x,
    RowMask mask,
    float scale,
    int64_t n,
    void* out) {
  HWY_DYNAMIC_DISPATCH(masked_softmax_row)(dtype, x, mask, scale, n, out);
}

void softmax_backward_rows(
    Dtype dtype,
    const void* y,
    const void* dy,
    int64_t rows,
    int64_t n,
    float scale,
    bool logarithm,
    void* dx) {
  HWY_DYNAMIC_DISPATCH(softmax_backward_rows)(dtype, y, dy, rows, n, scale, logarithm, dx);
}

float cross_entropy_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing) {
  return HWY_DYNAMIC_DISPATCH(cross_entropy_row)(dtype, logits, n, target, smoothing);
}

void cross_entropy_backward_row(
    Dtype dtype,
    const void* logits,
    int64_t n,
    int64_t target,
    float smoothing,
    float dy,
    void* dx) {
  HWY_DYNAMIC_DISPATCH(cross_entropy_backward_row)(dtype, logits, n, target, smoothing, dy, dx);
}

} // namespace cpu
} // namespace zmlx
#endif
