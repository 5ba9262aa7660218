// zmlx/kernel/cpu/activate.h: activations, sums of two and dropout, element by element, for f32,
// f16 and bf16.
#pragma once

#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

enum class Activation : uint8_t {
  silu,
  gelu,
  gelu_tanh,
  relu,
  relu2,
  sigmoid,
  tanh,
  softplus,
  mish,
  exp,
  log,
  log_sigmoid,
  gelu_fast,
  relu6,
  hardswish,
  selu,
  elu,
  leaky_relu,
};

/// out = f(x), or with `gate` set f(gate) * x, for n elements. `parameter` is elu's alpha and
/// leaky_relu's slope.
void activate(
    Activation f,
    Dtype dtype,
    const void* gate,
    const void* x,
    int64_t n,
    void* out,
    float parameter = 0);

/// a + b for n elements. `past_cache`: see cpu::past_cache; flush_stores() must follow the
/// last row. `ahead`: n elements that will be read next.
void add_row(
    Dtype dtype,
    const void* a,
    const void* b,
    int64_t n,
    void* out,
    bool past_cache = false,
    const void* ahead = nullptr);

/// Elements of x kept with probability 1 - p and divided by it, the others 0. The random words are
/// those of MLX's random::bits for n elements and this key: Threefry-2x32 (Salmon et al., 2011).
/// Does pairs [first, last) of pair_count(n): a pair is elements i and i + pair_count(n).
/// `past_cache`: see cpu::past_cache; `first` is a multiple of 64 then, and pair_count(n) too.
void dropout_pairs(
    Dtype dtype,
    const void* x,
    const uint32_t* key,
    float p,
    int64_t n,
    int64_t first,
    int64_t last,
    void* out,
    bool past_cache = false);
inline int64_t pair_count(int64_t n) {
  return (n + 1) / 2;
}

} // namespace zmlx::cpu
