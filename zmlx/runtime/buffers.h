// zmlx/runtime/buffers.h: memory for the outputs of single ops.
#pragma once

#include "mlx/array.h"

namespace zmlx {

namespace mx = mlx::core;

/// Gives an output memory. The system clears every fresh page, so large outputs ask for huge pages,
/// begin at a whole line, and when they are freed are kept for the next of their size, up to
/// ZMLX_KEPT_MB megabytes (by default 256). MLX counts what is kept as active memory.
void allocate(mx::array& out);

} // namespace zmlx
