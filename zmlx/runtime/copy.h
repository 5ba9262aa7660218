// zmlx/runtime/copy.h: copies between memory layouts that kernels do not want to see.
#pragma once

#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "zmlx/runtime/buffers.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx {

namespace mx = mlx::core;

/// What a kernel sees of an evaluated, row-contiguous array.
Tensor tensor_of(const mx::array& a);

/// Copies an evaluated array of any strides into row-contiguous memory.
void copy_packed(const mx::array& from, std::byte* to);

/// The array as a kernel queued on `encoder` after this call sees it: itself when it is
/// row-contiguous, else a packed copy, made by a task of its own.
Tensor packed_tensor(const mx::array& a, mx::cpu::CommandEncoder& encoder);

} // namespace zmlx
