// zmlx/kernel/cuda/rows.h: launches of kernels that go over rows or elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/tensor.h"

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

/// A launch of a thread for each of `count` units, in blocks of 256.
inline Launch thread_a_unit(std::string source, std::string kernel, int64_t count) {
  Launch launch;
  launch.source = std::move(source);
  launch.kernel = std::move(kernel);
  launch.grid[0] = static_cast<uint32_t>((count + 255) / 256);
  launch.block[0] = 256;
  return launch;
}

/// Whether all are from 1 to what an int32 holds: launches of nothing are none.
inline bool countable(std::initializer_list<int64_t> counts) {
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  return std::all_of(counts.begin(), counts.end(), [](int64_t n) { return n > 0 && n <= most; });
}

/// The type of indices of that dtype: int32, uint32 or int64.
inline std::string index_text(Dtype dtype) {
  return dtype == Dtype::u32 ? "uint32_t" : dtype == Dtype::i64 ? "int64_t" : "int32_t";
}

inline std::string text_of(bool flag) {
  return flag ? "true" : "false";
}

} // namespace zmlx::cuda
