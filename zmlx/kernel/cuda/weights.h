// zmlx/kernel/cuda/weights.h: how kernels' template texts and arguments name dtypes and weights.
#pragma once

#include <string>
#include <vector>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cuda {

using cpu::WeightFormat;

/// "float", "f16" or "bf16"; the dtype must be floating.
std::string text_of(Dtype dtype);
/// "Affine<4, 64>", "Mxfp4", "Dense", ...: a type of weights.cuh.
std::string text_of(WeightFormat format);

/// Appends a weight's three Pointers: codes, scales, biases, inputs `at` and after. What the format
/// does not have repeats the codes.
void push_weight(std::vector<Argument>& arguments, WeightFormat format, int at);

} // namespace zmlx::cuda
