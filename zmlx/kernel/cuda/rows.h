// zmlx/kernel/cuda/rows.h: launches of kernels that go over rows.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "zmlx/kernel/cuda/launch.h"

namespace zmlx::cuda {

/// A launch of blocks of 256 threads in which each warp has a row.
inline Launch warp_a_row(std::string source, std::string kernel, int64_t rows) {
  Launch launch;
  launch.source = std::move(source);
  launch.kernel = std::move(kernel);
  launch.grid[0] = static_cast<uint32_t>((rows + 7) / 8);
  launch.block[0] = 256;
  return launch;
}

} // namespace zmlx::cuda
