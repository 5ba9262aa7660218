// zmlx/runtime/cuda/apply.h: one op as nodes of MLX's own CUDA graph.
#pragma once

#include "zmlx/ops/op.h"

namespace zmlx::cuda {

/// Gives `outputs` their memory and queues the op's launches among MLX's own. For a kernel that is
/// not `strided`, inputs that are no whole rows of memory are packed first.
void apply(
    const Op& op,
    const Kernel& kernel,
    const Arrays& inputs,
    Arrays& outputs,
    const mx::Stream& stream);

} // namespace zmlx::cuda
