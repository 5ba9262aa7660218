// zmlx/kernel/cuda/units.cuh: numbers of threads, and what stands for a value that there is not.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// The number of this thread in a grid along x.
ZMLX_DEVICE int64_t thread_number() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

ZMLX_DEVICE float not_a_number() {
  return bits_to_float(0x7FC00000u);
}
