// zmlx/runtime/cuda/memory.h: device memory: one workspace a stream, and buffers for outputs.
#pragma once

#include "mlx/allocator.h"
#include "zmlx/runtime/cuda/mlx_stream.h"

namespace zmlx::cuda {

/// Memory of at least that size that all plans share on a stream, whose runs come one after the
/// other. It moves when it has to grow; runs queued before keep the old one to their end.
Address workspace(const Gpu& gpu, Stream stream, size_t bytes);

/// max_counters zeros, an int32_t each, which launches on the stream count with and leave zero.
Address counters(const Gpu& gpu, Stream stream);

/// A buffer for an array of MLX's, from a pool for the stream, to which it returns. MLX itself
/// offers only memory that is shared with the CPU.
mx::allocator::Data allocate(const Gpu& gpu, Stream stream, size_t bytes);
/// Whether the array's memory comes from allocate().
bool is_ours(const mx::array& a);

} // namespace zmlx::cuda
