// zmlx/kernel/cpu/matmul_int8_amx.cpp: the panels of the int8 matmul by AMX: 16 rows of activations
// times 16 of weights over a group are one tile of integers.
#include "zmlx/kernel/cpu/matmul_int8.h"

#if defined(__AMX_INT8__) && defined(__AVX512F__)

#include <algorithm>
#include <atomic>
#include <cstring>

#include "zmlx/kernel/cpu/instruction_sets.h"
#include "zmlx/kernel/cpu/matmul_avx512.h"

namespace zmlx::cpu {
namespace {

constexpr int64_t side = 16; // of a tile
constexpr int64_t most_codes = 2048; // of a row in a panel
constexpr int64_t most_groups = most_codes / 32;
constexpr int64_t stride = most_codes + 64; // rows that meet in few cache sets are slow to load

/// What the tile registers hold: 0 and 1 sums, 2 activations, 3 weights.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  constexpr explicit TileConfig(int depth) {
    rows[0] = rows[1] = rows[2] = side;
    row_bytes[0] = row_bytes[1] = row_bytes[3] = 64;
    row_bytes[2] = static_cast<uint16_t>(depth);
    rows[3] = static_cast<uint8_t>(depth / 4);
  }
};
// Not on a stack: the compiler does not know how much of it is read.
constexpr TileConfig half_deep(32);
constexpr TileConfig deep(64);

/// 16 rows of activations for one panel, the missing ones zero.
struct Block {
  alignas(64) std::byte codes[side * stride];
  alignas(64) float scales[side][most_groups];
  alignas(64) int32_t sums[side][most_groups]; // floats for affine codes
};

const std::byte* row_of(const Rows& rows, size_t row_bytes, int64_t i) {
  const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
  return rows.prepared + at * row_bytes;
}

/// One group's sums of products to `to`, through tile register Sums. Registers are named in the
/// text of instructions, so they cannot be parameters.
template <int Sums>
[[gnu::always_inline]] inline void multiply_group(
    const std::byte* x,
    int64_t x_stride,
    const std::byte* codes,
    int64_t size,
    int32_t* to) {
  if constexpr (Sums == 0) {
    _tile_zero(0);
  } else {
    _tile_zero(1);
  }
  for (int64_t i = 0; i < size; i += 64) {
    _tile_loadd(2, x + i, x_stride);
    _tile_loadd(3, codes + i * 32, 128);
    if constexpr (Sums == 0) {
      _tile_dpbsud(0, 2, 3);
    } else {
      _tile_dpbsud(1, 2, 3);
    }
  }
  if constexpr (Sums == 0) {
    _tile_stored(0, to, 64);
  } else {
    _tile_stored(1, to, 64);
  }
}

/// Adds a group's sums, scaled, to 16 rows.
template <bool Affine>
[[gnu::always_inline]] inline void add_group(
    const Block& block,
    const Int8Panel& p,
    int64_t group,
    int64_t half,
    const int32_t* sums,
    __m512* total) {
  const __m512 scale = _mm512_load_ps(p.scales + group * panel_outputs + half * side);
  __m512 bias = _mm512_setzero_ps();
  if constexpr (Affine) {
    bias = _mm512_load_ps(p.biases + group * panel_outputs + half * side);
  }
  unrolled<side>([&](int m) ZMLX_INLINED {
    __m512i sum = _mm512_load_si512(sums + m * side);
    if constexpr (!Affine) {
      sum = _mm512_add_epi32(sum, _mm512_set1_epi32(block.sums[m][group]));
    }
    const __m512 both = _mm512_mul_ps(scale, _mm512_set1_ps(block.scales[m][group]));
    total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, total[m]);
    if constexpr (Affine) {
      const __m512 own = _mm512_castsi512_ps(_mm512_set1_epi32(block.sums[m][group]));
      total[m] = _mm512_fmadd_ps(own, bias, total[m]);
    }
  });
}

template <bool Affine>
void multiply(
    const Int8Panel& p,
    const Int8Row& row,
    const Rows& rows,
    size_t row_bytes,
    bool first,
    int64_t height,
    float* out,
    int64_t ld) {
  _tile_loadconfig(p.group_size < 64 ? &half_deep : &deep);
  Block block;
  alignas(64) int32_t sums[2][side * side];
  const int64_t codes_at = row.groups_at + p.first_group * p.group_size;
  for (int64_t i = 0; i < rows.count; i += side) {
    const int64_t count = std::min(side, rows.count - i);
    const std::byte* x = rows.prepared + static_cast<size_t>(i) * row_bytes + codes_at;
    auto x_stride = static_cast<int64_t>(row_bytes);
    const bool gathered = rows.index || count < side;
    for (int64_t m = 0; m < side; ++m) {
      const std::byte* from = m < count ? row_of(rows, row_bytes, i + m) : nullptr;
      auto* to = block.codes + m * stride;
      for (int64_t g = 0; g < p.groups; g += side) {
        const int64_t at = (p.first_group + g) * 4;
        _mm512_store_ps(
            &block.scales[m][g],
            from ? _mm512_load_ps(from + row.scales_at + at) : _mm512_setzero_ps());
        _mm512_store_si512(
            &block.sums[m][g],
            from ? _mm512_load_si512(from + row.sums_at + at) : _mm512_setzero_si512());
      }
      for (int64_t at = 0; gathered && at < p.groups * p.group_size; at += 64) {
        _mm512_store_si512(
            to + at, from ? _mm512_loadu_si512(from + codes_at + at) : _mm512_setzero_si512());
      }
    }
    if (gathered) {
      x = block.codes;
      x_stride = stride;
    }
    // What was stored above is read by instructions that the compiler knows nothing of.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    for (int64_t half = 0; half * side < height; ++half) {
      const __mmask16 keep = first_lanes(height - half * side);
      float* to = out + i * ld + half * side;
      __m512 total[side];
      unrolled<side>([&](int m) ZMLX_INLINED {
        total[m] =
            first || m >= count ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(keep, to + m * ld);
      });
      const std::byte* codes = p.codes + half * 64;
      auto group = [&]<int Which>(std::integral_constant<int, Which>, int64_t g) ZMLX_INLINED {
        multiply_group<Which>(
            x + g * p.group_size,
            x_stride,
            codes + g * p.group_size * 32,
            p.group_size,
            sums[Which]);
      };
      constexpr std::integral_constant<int, 0> even;
      constexpr std::integral_constant<int, 1> odd;
      // Tiles of the next group are multiplied while vectors add this one.
      group(even, 0);
      for (int64_t g = 0; g < p.groups; g += 2) {
        if (g + 1 < p.groups) {
          group(odd, g + 1);
        }
        add_group<Affine>(block, p, g, half, sums[0], total);
        if (g + 2 < p.groups) {
          group(even, g + 2);
        }
        if (g + 1 < p.groups) {
          add_group<Affine>(block, p, g + 1, half, sums[1], total);
        }
      }
      unrolled<side>([&](int m) ZMLX_INLINED {
        if (m < count) {
          _mm512_mask_storeu_ps(to + m * ld, keep, total[m]);
        }
      });
    }
  }
  _tile_release();
}

} // namespace

bool has_int8_tiles() {
  return tiles().int8;
}

void multiply_int8_tiles(
    const Int8Panel& panel,
    const Int8Row& row,
    const Rows& rows,
    size_t row_bytes,
    bool first,
    int64_t height,
    float* out,
    int64_t ld) {
  auto* run = panel.affine ? multiply<true> : multiply<false>;
  run(panel, row, rows, row_bytes, first, height, out, ld);
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

bool has_int8_tiles() {
  return false;
}

void multiply_int8_tiles(
    const Int8Panel&,
    const Int8Row&,
    const Rows&,
    size_t,
    bool,
    int64_t,
    float*,
    int64_t) {}

} // namespace zmlx::cpu

#endif
