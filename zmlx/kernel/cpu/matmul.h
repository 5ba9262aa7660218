// zmlx/kernel/cpu/matmul.h: rows of activations times a weight matrix, quantised as MLX packs it or
// dense.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "zmlx/runtime/team.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

/// What codes mean. affine: integers, element = code * scale + bias, both of the activations'
/// dtype. The others: element = code * scale, codes e2m1 (fp4) or e4m3 (fp8), scales of one byte:
/// e8m0 (mx) or e4m3 (nv).
enum class Quantisation : uint8_t { affine, mxfp4, mxfp8, nvfp4 };

/// How activations meet codes: as they are, or rounded to 8 bits first, a scale for each group of
/// the weight (see int8.h).
enum class Activations : uint8_t { exact, int8 };

/// How a weight's elements are stored: codes of `bits` bits with a scale for each `group_size` of a
/// row, or, with bits = 0, plainly in the activations' dtype.
struct WeightFormat {
  int bits = 0;
  int group_size = 0;
  Quantisation mode = Quantisation::affine;

  bool has_biases() const {
    return bits && mode == Quantisation::affine;
  }
};

/// A weight matrix [n, k], row-major; scales and biases [n, k / group_size].
struct Weight {
  const void* codes = nullptr;
  const void* scales = nullptr;
  const void* biases = nullptr;
};

/// Prepared rows of activations, one every Matmul::prepared_bytes(). With `index`, row i is number
/// index[i].
struct Rows {
  const std::byte* prepared = nullptr;
  int64_t count = 0;
  const uint32_t* index = nullptr;
};

struct MatmulKernels;

/// x [m, k] times the transpose of a weight [n, k], accumulated in float32. A plain value: make it
/// once, use it anywhere. Activations are brought into the kernel's own order once (`prepare`),
/// then any blocks of outputs may be computed.
class Matmul {
 public:
  static bool supports(Dtype dtype, WeightFormat format, int64_t k);

  Matmul() = default;
  /// Needs supports(dtype, format, k), and fits_int8(format) for int8 activations. `rows` is how
  /// many there are as a rule: some kernels are for many. Any number is right with any of them.
  Matmul(
      Dtype dtype,
      WeightFormat format,
      int64_t k,
      Activations activations = Activations::exact,
      int64_t rows = 1);

  Dtype dtype() const {
    return dtype_;
  }
  WeightFormat format() const {
    return format_;
  }
  int64_t k() const {
    return k_;
  }
  /// Bytes of one prepared row, a multiple of 64.
  size_t prepared_bytes() const {
    return prepared_bytes_;
  }
  /// Prepares one row of k elements of dtype(); `to` is 64-byte aligned.
  void prepare(const void* x, std::byte* to) const;

  /// out[i * ld + j - outputs.begin] = row i times weight row j, for all rows and the weight rows
  /// in `outputs`. The value depends on the number of rows given at once, never on where `outputs`
  /// begins or ends.
  void run(const Weight& weight, Range outputs, const Rows& rows, float* out, int64_t ld) const;

  /// How much of `rows` rows' output is best computed at once.
  struct Block {
    int64_t outputs;
    int64_t rows;
  };
  Block block(int64_t rows) const;

  /// The same weight's expert `e`, when `weight` is a stack of n-row matrices.
  Weight expert(const Weight& stack, int64_t e, int64_t n) const;

 private:
  const MatmulKernels* kernels_ = nullptr;
  Dtype dtype_ = Dtype::f32;
  WeightFormat format_;
  int64_t k_ = 0;
  size_t prepared_bytes_ = 0;
};

/// RMS norm before a matmul; no weight: none.
struct Norm {
  const void* weight = nullptr;
  float eps = 0;
};

/// Bytes of shared scratch that prepare_rows() needs for `rows` rows.
size_t prepare_scratch(const Matmul& matmul, int64_t rows);

/// A member's own buffer for a few prepared rows: cheaper to fill on every member than to share
/// through a barrier.
struct LocalRows {
  static constexpr size_t capacity = 32768;
  alignas(64) std::byte bytes[capacity];
};

/// Rows x [rows, k], normalised if asked, ready for `matmul`. Few rows go to `local` without a
/// barrier; many are split over the members into `scratch`, with one barrier. With `normalised`
/// [rows, k], also writes the normalised rows there (complete for other members only after the next
/// barrier).
Rows prepare_rows(
    const Matmul& matmul,
    const void* x,
    int64_t rows,
    Norm norm,
    std::byte* scratch,
    LocalRows& local,
    Member& member,
    void* normalised = nullptr);

/// The most outputs, and numbers, of one block that for_blocks hands out.
inline constexpr int64_t block_outputs = 256;
inline constexpr int64_t block_floats = 32768;

/// Up to so many rows use weights as they are decoded; for more, 32 weight rows are decoded first.
inline constexpr int64_t few_rows = 10;
/// From so many on tiles do that faster.
inline constexpr int64_t tiled_rows = 4;

/// Where work on `rows` rows may be cut among members.
inline int64_t split_grain(int64_t rows) {
  return rows >= tiled_rows ? 32 : 8;
}

/// Rows [first, first + count).
inline Rows rows_from(const Matmul& matmul, Rows rows, int64_t first, int64_t count) {
  if (rows.index) {
    rows.index += first;
  } else {
    rows.prepared += static_cast<size_t>(first) * matmul.prepared_bytes();
  }
  rows.count = count;
  return rows;
}

/// Calls f(Range outputs, int64_t first_row, int64_t rows, float* block, int64_t ld) for blocks of
/// x @ weight.T within `outputs`; block element (i, j) is row first_row + i, output outputs.begin +
/// j, and f may overwrite it.
template <typename F>
void for_blocks_in(
    const Matmul& matmul,
    const Weight& weight,
    Range outputs,
    const Rows& rows,
    F&& f) {
  alignas(64) float block[block_floats];
  const auto [width, height] = matmul.block(rows.count);
  for (int64_t j = outputs.begin; j < outputs.end; j += width) {
    const Range part{j, std::min(j + width, outputs.end)};
    for (int64_t i = 0; i < rows.count; i += height) {
      const int64_t count = std::min(rows.count - i, height);
      matmul.run(weight, part, rows_from(matmul, rows, i, count), block, width);
      f(part, i, count, block, width);
    }
  }
}

/// The same for two weights of one shape: f(outputs, first_row, rows, first block, second block,
/// ld).
template <typename F>
void for_pairs_in(
    const Matmul& matmul,
    const Weight& first,
    const Weight& second,
    Range outputs,
    const Rows& rows,
    F&& f) {
  alignas(64) float block[block_floats];
  for_blocks_in(
      matmul,
      first,
      outputs,
      rows,
      [&](Range part, int64_t i, int64_t count, float* other, int64_t ld) {
        matmul.run(second, part, rows_from(matmul, rows, i, count), block, ld);
        f(part, i, count, other, block, ld);
      });
}

/// for_blocks_in on this member's share of n outputs: over the members every output is visited
/// once.
template <typename F>
void for_blocks(
    const Matmul& matmul,
    const Weight& weight,
    int64_t n,
    const Rows& rows,
    Member& member,
    F&& f) {
  for_blocks_in(matmul, weight, member.split(n, split_grain(rows.count)), rows, f);
}

} // namespace zmlx::cpu
