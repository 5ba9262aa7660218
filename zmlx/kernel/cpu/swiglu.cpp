// zmlx/kernel/cpu/swiglu.cpp: silu(gate) * up, for each instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/swiglu.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include "zmlx/kernel/cpu/stream-inl.h"
#include "zmlx/kernel/cpu/swiglu.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

template <typename T>
HWY_FLATTEN void rows_of(
    const T* gate,
    const T* up,
    int64_t rows,
    int64_t n,
    int64_t stride,
    bool past_cache,
    T* out) {
  const int64_t ahead = cpu::row_ahead(stride, sizeof(T));
  auto unit = [](Floats g, Floats u) HWY_ATTR { return hn::Mul(hn::Mul(g, sigmoid_for<T>(g)), u); };
  for (int64_t r = 0; r < rows; ++r, gate += stride, up += stride, out += n) {
    auto fetch = [&](int64_t i) HWY_ATTR {
      fetch_two(gate + i + ahead);
      fetch_two(up + i + ahead);
    };
    written(out, n, past_cache, [&](T* to) HWY_ATTR { map_row(n, to, fetch, unit, gate, up); });
  }
  if (past_cache) {
    hwy::FlushStream();
  }
}

void swiglu_rows(
    Dtype dtype,
    const void* gate,
    const void* up,
    int64_t rows,
    int64_t n,
    int64_t stride,
    bool past_cache,
    void* out) {
  auto run = [&]<typename T>(T*) {
    rows_of(
        static_cast<const T*>(gate),
        static_cast<const T*>(up),
        rows,
        n,
        stride,
        past_cache,
        static_cast<T*>(out));
  };
  switch (dtype) {
    case Dtype::f16:
      return run(static_cast<hwy::float16_t*>(nullptr));
    case Dtype::bf16:
      return run(static_cast<hwy::bfloat16_t*>(nullptr));
    default:
      return run(static_cast<float*>(nullptr));
  }
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(swiglu_rows);

void cpu::swiglu_rows(
    Dtype dtype,
    const void* gate,
    const void* up,
    int64_t rows,
    int64_t n,
    int64_t stride,
    bool past_cache,
    void* out) {
  HWY_DYNAMIC_DISPATCH(swiglu_rows)(dtype, gate, up, rows, n, stride, past_cache, out);
}

} // namespace zmlx
#endif
