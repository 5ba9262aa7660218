// zmlx/runtime/cuda/apply.h: one op as nodes of MLX's own CUDA graph.
#pragma once

#include "zmlx/ops/op.h"

namespace zmlx::cuda {

/// Gives `outputs` their memory and queues the op's launches among MLX's own. Inputs of
/// a kernel that is not `strided` must be row-contiguous; throws std::invalid_argument when one is
/// not.
void apply(
    const Op& op,
    const Kernel& kernel,
    const Arrays& inputs,
    Arrays& outputs,
    const mx::Stream& stream);

} // namespace zmlx::cuda
