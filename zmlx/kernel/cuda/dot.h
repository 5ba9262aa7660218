// zmlx/kernel/cuda/dot.h: the numbers of dot.cuh that launches need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

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

/// RowPart<T, W, chunks, slices, whole>: how warps share a row of k elements.
struct RowPart {
  static constexpr int64_t warps = 8; // the most of a block

  Dot dot;
  int64_t slices = 1;
  int64_t shares = 1; // warps that have a part each
  bool whole = false; // rows of k elements in n rows are whole steps of whole tiles

  /// For rows of k elements that up to `most_shares` warps share, of weights with multiples of `n`
  /// rows.
  static RowPart of(WeightFormat format, int64_t k, int64_t n, int64_t most_shares) {
    const Dot one{format, 1, 1};
    const int64_t least =
        format.bits ? ceil_div(format.group_size, one.chunk()) : 1; // a whole group
    // Each group of a step has one of the eight columns of a product, and codes lie in registers.
    const int64_t columns = format.bits ? 8 * format.group_size / one.chunk() : 8;
    const int64_t most = std::max(least, std::min<int64_t>(4, columns) / least * least);
    const int64_t chunks = ceil_div(ceil_div(k, one.chunk()), least) * least;
    const int64_t steps = ceil_div(chunks, most);
    const int64_t slices = ceil_div(steps, most_shares);
    const int64_t shares = ceil_div(steps, slices);
    const int64_t fewest = ceil_div(ceil_div(chunks, slices * shares), least) * least;
    RowPart part{{format, 1, fewest}, slices, shares};
    const int64_t group = format.bits ? format.group_size : part.dot.step();
    const bool in_pairs = !format.bits || (part.dot.step() / group % 2 == 0 && k / group % 2 == 0);
    part.whole = k == slices * shares * part.dot.step() && n % 16 == 0 && in_pairs;
    return part;
  }

  /// Bytes of shared memory of one warp.
  size_t shared() const {
    const int64_t part = slices * dot.step();
    const int64_t sums = dot.format.has_biases() ? part / dot.format.group_size : 0;
    const int64_t zeros = dot.chunk() / 4 * 2;
    return static_cast<size_t>((part * 2 + zeros + sums * 4 + 15) / 16 * 16);
  }

  /// Of a block's, for as many weights.
  size_t block_shared(int64_t weights) const {
    return 32 + static_cast<size_t>(shares) * (static_cast<size_t>(weights) * 64 + shared());
  }

  /// The arguments of the template from `chunks` on.
  std::string text() const {
    return std::to_string(dot.chunks) + ", " + std::to_string(slices) +
        (whole ? ", true" : ", false");
  }

  /// Longer rows take too many registers.
  bool fits() const {
    return slices <= 4;
  }
};

} // namespace zmlx::cuda
