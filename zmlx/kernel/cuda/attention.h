// zmlx/kernel/cuda/attention.h: launches for attention: of a few tokens, of many, and of any kind.
#pragma once

#include "zmlx/kernel/cpu/attention.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cuda {

/// Inputs as of op attention; `mask` is the fourth's type, where it is one.
Kernel attention(const cpu::Attention& op, Dtype dtype, const Type* mask, const Device& device);

} // namespace zmlx::cuda
