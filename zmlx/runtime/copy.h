// zmlx/runtime/copy.h: copies between memory layouts that kernels do not want to see.
#pragma once

#include "mlx/array.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx {

namespace mx = mlx::core;

/// What a kernel sees of an evaluated, row-contiguous array.
Tensor tensor_of(const mx::array& a);

/// Copies an evaluated array of any strides into row-contiguous memory.
void copy_packed(const mx::array& from, std::byte* to);

} // namespace zmlx
