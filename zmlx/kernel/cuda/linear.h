// zmlx/kernel/cuda/linear.h: launches for linear layers, alone and as a gated pair.
#pragma once

#include <vector>

#include "zmlx/kernel/cuda/weights.h"

namespace zmlx::cuda {

/// One weight of several for the same x: where its arrays, its bias and its result are.
struct LinearOutput {
  Argument codes;
  Argument scales;
  Argument biases;
  Argument bias; // any if there is none
  Argument out;
  int64_t n;
};

/// x [rows, k], normalised first if `norm`, times the transpose of each weight; bias and residual
/// are added if set.
struct Linear {
  Dtype dtype;
  WeightFormat format;
  int64_t rows;
  int64_t k;
  Argument x;
  bool has_norm = false;
  Argument norm{};
  float eps = 0;
  bool has_bias = false;
  bool has_normal = false; // the normalised x is a result as well
  Argument normal{};
  bool has_residual = false;
  Argument residual{};
  bool exact = false; // rounds between additions
  bool pair = false; // the first two weights are gate and up, out silu(gate) * up goes to the first
  std::vector<LinearOutput> outputs{};
};

/// The weight whose arrays begin at input `at`.
LinearOutput linear_output(WeightFormat format, int at, Argument out, int64_t n);

/// The most rows that are worth reading the weights' codes as they are; more are a prompt.
inline constexpr int64_t few_rows = 16;

/// Appends the launches, and what scratch they need to what `kernel` has. Prompts do not round
/// between additions.
void push_linear(Kernel& kernel, const Linear& linear, const Device& device);

} // namespace zmlx::cuda
