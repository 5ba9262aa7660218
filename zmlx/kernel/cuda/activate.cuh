// zmlx/kernel/cuda/activate.cuh: activations, element by element.
#pragma once
#include "zmlx/kernel/cuda/base.cuh"

namespace activation {

ZMLX_DEVICE float sigmoid(float x) {
  return 1 / (1 + expf(-x));
}
ZMLX_DEVICE float softplus(float x) {
  return x != x ? x : fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}
ZMLX_DEVICE float relu(float x) {
  return x < 0 ? 0 : x;
}
ZMLX_DEVICE float silu(float x) {
  return x * sigmoid(x);
}
ZMLX_DEVICE float gelu(float x) {
  return x * 0.5f * erfcf(-0.70710678f * x);
}
ZMLX_DEVICE float gelu_tanh(float x) {
  return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x));
}
ZMLX_DEVICE float relu2(float x) {
  return relu(x) * relu(x);
}
ZMLX_DEVICE float tanh(float x) {
  return tanhf(x);
}
ZMLX_DEVICE float mish(float x) {
  return x * tanhf(softplus(x));
}
ZMLX_DEVICE float exp(float x) {
  return expf(x);
}
ZMLX_DEVICE float log(float x) {
  return logf(x);
}
ZMLX_DEVICE float log_sigmoid(float x) {
  return -softplus(-x);
}
ZMLX_DEVICE float gelu_fast(float x) {
  return x * sigmoid(1.702f * x);
}
ZMLX_DEVICE float relu6(float x) {
  return x > 6 ? 6 : relu(x);
}
ZMLX_DEVICE float hardswish(float x) {
  return x * relu6(x + 3) * (1.0f / 6);
}
ZMLX_DEVICE float selu(float x) {
  return 1.05070099f * (x > 0 ? x : 1.67326324f * expm1f(x));
}

} // namespace activation

/// out = f(x) for n elements, 4 a thread.
template <typename T, float (*f)(float)>
__global__ void __launch_bounds__(256) activate(Pointer x, Pointer out, int n) {
  start_successor();
  wait_for_predecessor();
  const T* from = x.as<T>();
  T* to = out.as<T>();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 1024 + threadIdx.x;
  for (int j = 0; j < 4; ++j) {
    const int64_t i = first + j * 256;
    if (i < n) {
      to[i] = from_float<T>(f(to_float(from[i])));
    }
  }
}
