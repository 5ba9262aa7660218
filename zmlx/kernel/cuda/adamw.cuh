// zmlx/kernel/cuda/adamw.cuh: one step of the AdamW optimiser.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// Parameters and moments are there already, and are replaced. log_beta: 1 - beta^step is -expm1(step * log_beta).
template <typename T, typename Slope, bool corrects>
__global__ void __launch_bounds__(256) adamw_step(
    Pointer slopes,
    Pointer lr,
    Pointer step,
    Pointer parameters,
    Pointer means,
    Pointer squares,
    int n,
    float beta1,
    float beta2,
    float rest1,
    float rest2,
    float log_beta1,
    float log_beta2,
    float eps,
    float weight_decay) {
  start_successor();
  wait_for_predecessor();
  const int64_t i = thread_number();
  if (i >= n) {
    return;
  }
  float rate = *lr.as<float>();
  const float kept = 1 - rate * weight_decay;
  float spread = 1;
  if (corrects) {
    rate /= -expm1f(*step.as<float>() * log_beta1);
    spread = 1 / sqrtf(-expm1f(*step.as<float>() * log_beta2));
  }
  const float slope = to_float(slopes.as<Slope>()[i]);
  const float mean = fmaf(beta1, means.as<float>()[i], rest1 * slope);
  const float square = fmaf(beta2, squares.as<float>()[i], rest2 * (slope * slope));
  const float size = fmaf(sqrtf(square), spread, eps);
  parameters.as<T>()[i] = from_float<T>(to_float(parameters.as<T>()[i]) * kept - rate * mean / size);
  means.as<float>()[i] = mean;
  squares.as<float>()[i] = square;
}
