// zmlx/kernel/cuda/dot.h: the numbers of dot.cuh that launches need.
#pragma once

#include <algorithm>
#include <cstdint>

#include "zmlx/kernel/cuda/weights.h"

namespace zmlx::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Dot<T, W, rows, chunks> for 16-bit activations.
struct Dot {
  WeightFormat format;
  int64_t rows = 1;
  int64_t chunks = 2;

  /// Elements of a weight row that four lanes read at once.
  int64_t chunk() const {
    return 4 * 128 / (format.bits ? format.bits : 16);
  }

  /// Elements of a weight row that one step takes.
  int64_t step() const {
    return chunks * chunk();
  }

  /// The same for a warp that has k elements of a row to read: all at once, if registers allow.
  Dot over(int64_t k) const {
    const int64_t least = format.bits ? ceil_div(format.group_size, chunk()) : 1; // a whole group
    const int64_t most = std::max<int64_t>(least, rows == 1 ? 6 : rows <= 4 ? 2 : 1);
    const int64_t wanted = ceil_div(std::clamp(ceil_div(k, chunk()), least, most), least) * least;
    return {format, rows, std::min(wanted, most / least * least)};
  }

  /// Whether lanes can read 16 bytes of codes at once, all of one group.
  bool takes(Dtype dtype, int64_t k) const {
    if (dtype == Dtype::f32) {
      return false;
    }
    if (format.bits == 0) {
      return k % 8 == 0;
    }
    return (format.bits == 4 || format.bits == 8) && format.mode != cpu::Quantisation::nvfp4 &&
        k * format.bits % 128 == 0;
  }

  /// Bytes for `staged` rows of k elements, and `parts` sets of sums of 16 x `rows` products.
  size_t shared(int64_t staged, int64_t k, int64_t parts) const {
    const int64_t padded = ceil_div(k, step()) * step();
    const int64_t sums = (format.has_biases() ? padded / format.group_size : 1) + 1;
    return static_cast<size_t>(
        staged * (padded + 8) * 2 + staged * sums * 4 + parts * 16 * rows * 4);
  }
};

} // namespace zmlx::cuda
