// zmlx/kernel/cpu/rope-inl.h: rotary position embedding of one head's row. Included once for each
// instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "zmlx/kernel/cpu/rope.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

#if defined(ZMLX_KERNEL_CPU_ROPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ZMLX_KERNEL_CPU_ROPE_INL_H_
#undef ZMLX_KERNEL_CPU_ROPE_INL_H_
#else
#define ZMLX_KERNEL_CPU_ROPE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Cosines and sines of one position.
struct Rotation {
  size_t half = 0; // pairs of elements
  int64_t position = std::numeric_limits<int64_t>::min(); // none yet
  HWY_ALIGN float cosine[cpu::max_rope_dims / 2];
  HWY_ALIGN float sine[cpu::max_rope_dims / 2];
};

/// The angle is position * scale * inv_freq in float32, as in MLX; std::cos reduces it exactly.
template <typename T>
void turn_to(Rotation& r, int64_t position, const cpu::Rope& rope, const float* inv_freq) {
  if (r.position == position) {
    return;
  }
  r.position = position;
  r.half = static_cast<size_t>(rope.dims) / 2;
  const float at = static_cast<float>(position) * rope.scale;
  for (size_t i = 0; i < r.half; ++i) {
    float angle = at * inv_freq[i];
    r.cosine[i] = std::cos(angle);
    r.sine[i] = std::sin(angle);
  }
  if (rope.exact) {
    for (size_t i = 0; i < r.half; i += lanes()) {
      const size_t left = r.half - i;
      store_some(round_to<T>(load_some(r.cosine + i, left)), r.cosine + i, left);
      store_some(round_to<T>(load_some(r.sine + i, left)), r.sine + i, left);
    }
  }
}

template <typename T, bool exact>
HWY_INLINE Floats rounded(Floats v) {
  if constexpr (exact) {
    return round_to<T>(v);
  } else {
    return v;
  }
}

template <typename T, bool exact>
HWY_INLINE void rotate_pair(Floats& a, Floats& b, Floats cosine, Floats sine) {
  auto x = hn::Sub(rounded<T, exact>(hn::Mul(a, cosine)), rounded<T, exact>(hn::Mul(b, sine)));
  auto y = hn::Add(rounded<T, exact>(hn::Mul(a, sine)), rounded<T, exact>(hn::Mul(b, cosine)));
  a = x;
  b = y;
}

/// Rotates x [2 * half] in place: pairs (i, i + half), or (2i, 2i + 1) when traditional.
template <typename T, bool exact>
void rotate(const Rotation& r, bool traditional, float* x) {
  const F32 d;
  const size_t step = lanes();
  size_t i = 0;
  if (traditional) {
    for (; i + step <= r.half; i += step) {
      Floats a;
      Floats b;
      hn::LoadInterleaved2(d, x + 2 * i, a, b);
      rotate_pair<T, exact>(a, b, load(r.cosine + i), load(r.sine + i));
      hn::StoreInterleaved2(a, b, d, x + 2 * i);
    }
    for (; i < r.half; ++i) {
      auto a = hn::Set(d, x[2 * i]);
      auto b = hn::Set(d, x[2 * i + 1]);
      rotate_pair<T, exact>(a, b, hn::Set(d, r.cosine[i]), hn::Set(d, r.sine[i]));
      x[2 * i] = hn::GetLane(a);
      x[2 * i + 1] = hn::GetLane(b);
    }
    return;
  }
  for (; i < r.half; i += step) {
    const size_t left = r.half - i;
    auto a = load_some(x + i, left);
    auto b = load_some(x + r.half + i, left);
    rotate_pair<T, exact>(a, b, load_some(r.cosine + i, left), load_some(r.sine + i, left));
    store_some(a, x + i, left);
    store_some(b, x + r.half + i, left);
  }
}

template <typename T>
void rotate(const Rotation& r, const cpu::Rope& rope, float* x) {
  rope.exact ? rotate<T, true>(r, rope.traditional, x) : rotate<T, false>(r, rope.traditional, x);
}

/// A row of tables, cosines and sines [dims / 2], as the rotation to make.
template <typename Table>
void turn_by(Rotation& r, const Table* cosine, const Table* sine, const cpu::Rope& rope) {
  r.half = static_cast<size_t>(rope.dims) / 2;
  for (size_t i = 0; i < r.half; i += lanes()) {
    const size_t left = r.half - i;
    store_some(load_some(cosine + i, left), r.cosine + i, left);
    store_some(load_some(sine + i, left), r.sine + i, left);
  }
}

/// x [n] with its first elements rotated, to `out`.
template <typename T>
void rotate_row(const Rotation& r, const cpu::Rope& rope, const T* x, size_t n, T* out) {
  HWY_ALIGN float row[cpu::max_rope_dims];
  const size_t dims = static_cast<size_t>(rope.dims);
  for (size_t i = 0; i < dims; i += lanes()) {
    store_some(load_some(x + i, dims - i), row + i, dims - i);
  }
  rotate<T>(r, rope, row);
  for (size_t i = 0; i < dims; i += lanes()) {
    store_some(load_some(row + i, dims - i), out + i, dims - i);
  }
  std::copy(x + dims, x + n, out + dims);
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
