// zmlx/kernel/cuda/gemm.h: prompts' matrix products on tensor cores: rows of activations times a
// weight, one for all rows or one for each expert's rows.
#pragma once

#include <optional>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cuda {

/// Where a weight's arrays are: codes (or the elements, where the format has no bits), scales and
/// biases, what the format lacks left out. A stack of experts is one weight, expert after expert.
struct GemmWeight {
  Argument codes;
  std::optional<Argument> scales;
  std::optional<Argument> biases;
};

/// y [rows, n] = x [rows, k] @ weight [n, k]^T, then + bias [n], then + residual [rows, n]; with
/// `up` it is silu(x @ weight^T) * (x @ up^T) instead. All of `dtype`, summed in float32.
struct GemmTask {
  Dtype dtype;
  cpu::WeightFormat format;
  int64_t rows;
  int64_t n;
  int64_t k;
  Argument x;
  GemmWeight weight;
  std::optional<GemmWeight> up{};
  std::optional<Argument> bias{};
  std::optional<Argument> residual{};
  Argument y{};
};

/// The same for pairs of a token and one of its experts, sorted by expert: row i of y is row
/// order[i] / per_row of x, or row i where there is no order, times the weight of the expert e with
/// offsets[e] <= i < offsets[e + 1].
struct GroupedGemmTask {
  Dtype dtype;
  cpu::WeightFormat format;
  int64_t pairs;
  int64_t experts;
  int64_t per_row; // experts chosen for a token
  int64_t n;
  int64_t k;
  Argument x;
  std::optional<Argument> order; // int32 [pairs]
  Argument offsets; // int32 [experts + 1]
  GemmWeight weight; // [experts, n, k]
  std::optional<GemmWeight> up{};
  Argument y; // [pairs, n]
};

/// Whether the tasks below can be done: always for dense weights, and for codes where k is a
/// multiple of the group size.
bool gemm_supports(Dtype dtype, cpu::WeightFormat format, int64_t k);

/// Append the task's launches, and the scratch memory they need after what `kernel` has. Any number
/// of rows is right; few rows are faster elsewhere.
void append_gemm(Kernel& kernel, const GemmTask& task, const Device& device);
void append_grouped_gemm(Kernel& kernel, const GroupedGemmTask& task, const Device& device);

} // namespace zmlx::cuda
