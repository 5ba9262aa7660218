// zmlx/kernel/cpu/matmul_int8.h: what the int8 matmuls of AVX-512 share: how prepared rows and
// panels of weights lie in memory. Included with the flags of the instruction set alone.
#pragma once

#include "zmlx/kernel/cpu/int8.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"

namespace zmlx::cpu {

/// Where the parts of a prepared row begin, in bytes. The row's integers are there twice, in the
/// two orders that kernels read:
/// - blocks, as a vector of packed codes meets them: block b, plane c, byte i is element (b * 64 +
/// i)
///   * planes + c;
/// - groups: group g, plane c, byte i is element g * group_size + i * planes + c, for tiles that
/// hold
///   one group.
/// With one plane both are the natural order and lie in the same place. Then come a group's scale
/// and its sum: for affine codes the sum of what its integers stand for, a float; for short floats,
/// whose codes are unsigned with an offset, minus the offset's share, an integer. Of the latter,
/// one for each 32-bit lane of codes comes last.
struct Int8Row {
  static constexpr int terms = 1;
  static constexpr int64_t low_at = 0;
  int64_t padded; // k in whole blocks
  int64_t groups_at;
  int64_t scales_at;
  int64_t sums_at;
  int64_t lanes_at;
  int64_t bytes;

  Int8Row(const MatmulShape& s, Code code) {
    const int planes = byte_planes(code);
    const int64_t block = 64 * planes;
    padded = (s.k + block - 1) / block * block;
    const int64_t floats = (s.groups() + 15) / 16 * 64;
    groups_at = planes > 1 ? padded : 0;
    scales_at = groups_at + padded;
    sums_at = scales_at + floats;
    lanes_at = sums_at + floats;
    bytes = lanes_at + (is_affine(code) ? 0 : padded / planes);
    // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
    bytes += bytes % 4096 ? 0 : 64;
  }
};

/// 32 weight rows decoded for some groups, in the order of a prepared row's groups: each 4 codes of
/// 16 rows are a vector, two for 32 rows. Scales and biases [group][32]; biases are there for
/// affine codes alone.
struct Int8Panel {
  const std::byte* codes;
  const float* scales;
  const float* biases;
  int64_t groups;
  int64_t first_group;
  int64_t group_size;
  bool affine;
};

/// Whether this CPU and build multiply tiles of 8-bit integers.
bool has_int8_tiles();

/// Rows of activations times a panel by 8-bit tiles, added to out, or stored if `first`; `height`
/// of the panel's rows are outputs. The group size is 32 or more.
void multiply_int8_tiles(
    const Int8Panel& panel,
    const Int8Row& row,
    const Rows& rows,
    size_t row_bytes,
    bool first,
    int64_t height,
    float* out,
    int64_t ld);

} // namespace zmlx::cpu
