// zmlx/kernel/cpu/matmul_amx.cpp: bf16 matmul of many rows by AMX's tiles of bf16 products. Codes
// are exact in bf16, so nothing is rounded but the float32 sums.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__)

#include <algorithm>
#include <array>
#include <cstring>

#include "zmlx/kernel/cpu/amx.h"
#include "zmlx/kernel/cpu/instruction_sets.h"
#include "zmlx/kernel/cpu/matmul_bf16.h"

namespace zmlx::cpu {
namespace {

// Weights are decoded to panels of bf16 pairs as in matmul_bf16.h, whose 16 rows are a tile. A
// panel fits the first cache, and meets all rows.
constexpr int64_t most_depth = 512; // k of a panel
constexpr int64_t most_scattered = 128; // rows that an index scatters, brought together
constexpr int64_t depth_grain = 256; // 16 words of any format, and two groups
constexpr int64_t tile_depth = 32; // k of a tile
constexpr int64_t tile_pair_bytes = 2048; // two tiles of a panel: 32 outputs
constexpr int64_t sum_parts = 3; // bf16 numbers that are exactly a float32
constexpr int64_t sum_groups = 32; // whose sums are one tile deep

constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

/// Formats whose codes times scales are exact in bf16: 2 or 4 bits times a power of two or 4 bits.
constexpr bool takes_scales(Code code) {
  return code == Code::mxfp4 || code == Code::mxfp8 || code == Code::nvfp4;
}

/// Bytes of a prepared row's elements. Two words' halves are pairs: element h * planes + c of a
/// word is number 2 c + h.
int64_t element_bytes(const MatmulShape& s) {
  return round_up(s.k, depth_grain) * 2;
}

template <Code C>
size_t prepared_bytes_as(const MatmulShape& s) {
  int64_t bytes = element_bytes(s);
  if constexpr (is_affine(C)) {
    bytes += round_up(s.groups(), sum_groups) * sum_parts * 2;
  }
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

template <Code C>
constexpr Lanes make_order() {
  Lanes table{};
  constexpr int planes = planes_of(C);
  for (int i = 0; i < 32; ++i) {
    const int at = i % (2 * planes);
    table.values[i] = static_cast<uint16_t>(i - at + at % 2 * planes + at / 2);
  }
  return table;
}
template <Code C>
constexpr Lanes order_of = make_order<C>();

/// The sums of groups, each as three numbers: [32 groups][part][group].
void prepare_sums(const MatmulShape& s, const uint16_t* from, std::byte* to) {
  const __m512bh one = bf16(_mm512_set1_epi16(0x3F80));
  const int64_t size = s.format.group_size;
  for (int64_t g = 0; g < s.groups(); g += sum_groups) {
    alignas(64) float sums[sum_groups] = {};
    for (int64_t i = 0; i < std::min(sum_groups, s.groups() - g); ++i) {
      __m512 total = _mm512_setzero_ps();
      for (int64_t at = 0; at < size; at += 32) {
        const __m512i values = _mm512_loadu_si512(from + (g + i) * size + at);
        total = _mm512_dpbf16_ps(total, bf16(values), one);
      }
      sums[i] = _mm512_reduce_add_ps(total);
    }
    __m512 low = _mm512_load_ps(sums);
    __m512 high = _mm512_load_ps(sums + 16);
    for (int part = 0; part < sum_parts; ++part) {
      const auto rounded = std::bit_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
      _mm512_store_si512(to, rounded);
      to += tile_bytes;
      low = _mm512_sub_ps(low, floats(_mm512_castsi512_si256(rounded)));
      high = _mm512_sub_ps(high, floats(_mm512_extracti64x4_epi64(rounded, 1)));
    }
  }
}

template <Code C>
void prepare_as(const MatmulShape& s, const void* x, std::byte* to) {
  auto* from = static_cast<const uint16_t*>(x);
  for (int64_t i = 0; i < element_bytes(s) / 2; i += 32) {
    const int64_t left = s.k - i;
    __m512i v = _mm512_maskz_loadu_epi16(first_halves(left), from + (left > 0 ? i : 0));
    if constexpr (planes_of(C) > 1) {
      v = _mm512_permutexvar_epi16(lanes(order_of<C>), v);
    }
    _mm512_store_si512(to + i * 2, v);
  }
  if constexpr (is_affine(C)) {
    prepare_sums(s, from, to + element_bytes(s));
  }
}

/// Up to 32 rows of x, for a part of k.
struct Block {
  const std::byte* x;
  int64_t stride;
  int64_t count;
};

/// Where a block's sums go: up to 32 columns.
struct Sums {
  float* out;
  int64_t ld;
  __mmask16 keep[2];
  bool fresh; // nothing there yet
};

/// What tiles are stored to, and read from: [2][4 tiles][16][16].
struct alignas(64) Scratch {
  float tiles[2][4][256] = {};
};

/// f.operator()<0>(), ... <N - 1>().
template <int N, typename F>
[[gnu::always_inline]] inline void unrolled_as(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) ZMLX_INLINED {
    (f.template operator()<I>(), ...);
  }
  (std::make_integer_sequence<int, N>());
}

/// The sums that are there so far to tiles, or from tiles to where they belong.
void take_sums(const Sums& sums, int64_t row, int64_t count, float* left, float* right) {
  const float* from = sums.out + row * sums.ld;
  for (int64_t r = 0; r < count; ++r, from += sums.ld) {
    _mm512_store_ps(left + r * 16, _mm512_maskz_loadu_ps(sums.keep[0], from));
    _mm512_store_ps(right + r * 16, _mm512_maskz_loadu_ps(sums.keep[1], from + 16));
  }
}
void put_sums(const Sums& sums, int64_t row, int64_t count, const float* left, const float* right) {
  float* to = sums.out + row * sums.ld;
  for (int64_t r = 0; r < count; ++r, to += sums.ld) {
    _mm512_mask_storeu_ps(to, sums.keep[0], _mm512_load_ps(left + r * 16));
    _mm512_mask_storeu_ps(to + 16, sums.keep[1], _mm512_load_ps(right + r * 16));
  }
}

/// Sums += x times weights whose scales are in them. `Rows` tiles of x, 1 or 2, each tile of
/// weights used `Repeats` times for as many tiles of x.
template <int Rows, int Repeats>
void multiply_plain(
    TileScope& scope,
    Scratch& scratch,
    const Block& block,
    const std::byte* panel,
    int64_t tiles,
    const Sums& sums) {
  const int64_t first = std::min(block.count, tile_rows);
  const int64_t second = Rows == 2 ? block.count - first : tile_rows;
  scope.set_rows(first, second);
  auto& part = scratch.tiles[0];
  if (sums.fresh) {
    unrolled_as<2 * Rows>([]<int T>() ZMLX_INLINED { zero_tile<T>(); });
  } else {
    take_sums(sums, 0, first, part[0], part[1]);
    if constexpr (Rows == 2) {
      take_sums(sums, tile_rows, second, part[2], part[3]);
    }
    unrolled_as<2 * Rows>([&]<int T>() ZMLX_INLINED { load_tile<T>(part[T], tile_bytes); });
  }
  const std::byte* x = block.x;
  for (int64_t t = 0; t < tiles; ++t, panel += tile_pair_bytes) {
    load_tile<6>(panel, 128);
    load_tile<7>(panel + 64, 128);
    for (int i = 0; i < Repeats; ++i, x += tile_bytes) {
      load_tile<4>(x, block.stride);
      multiply_bf16_tiles<0, 4, 6>();
      multiply_bf16_tiles<1, 4, 7>();
      if constexpr (Rows == 2) {
        load_tile<5>(x + tile_rows * block.stride, block.stride);
        multiply_bf16_tiles<2, 5, 6>();
        multiply_bf16_tiles<3, 5, 7>();
      }
    }
  }
  unrolled_as<2 * Rows>([&]<int T>() ZMLX_INLINED { store_tile<T>(part[T], tile_bytes); });
  put_sums(sums, 0, first, part[0], part[1]);
  if constexpr (Rows == 2) {
    put_sums(sums, tile_rows, second, part[2], part[3]);
  }
}

template <int Repeats>
void multiply_plain(
    TileScope& scope,
    Scratch& scratch,
    const Block& block,
    const std::byte* panel,
    int64_t tiles,
    const Sums& sums) {
  if (block.count > tile_rows) {
    multiply_plain<2, Repeats>(scope, scratch, block, panel, tiles, sums);
  } else {
    multiply_plain<1, Repeats>(scope, scratch, block, panel, tiles, sums);
  }
}

/// Adds rows [Begin, Begin + Count) of two groups' tiles, times their scales: the first 16 columns
/// to registers, the others to memory.
template <int Begin, int Count>
[[gnu::always_inline]] inline void
add_scaled(const float* tiles, const float* scales, __m512* left, float* right) {
  const __m512 s0 = _mm512_load_ps(scales);
  const __m512 s1 = _mm512_load_ps(scales + 16);
  const __m512 s2 = _mm512_load_ps(scales + 32);
  const __m512 s3 = _mm512_load_ps(scales + 48);
  unrolled_as<Count>([&]<int I>() ZMLX_INLINED {
    constexpr int r = Begin + I;
    const float* from = tiles + r * 16;
    left[r] = _mm512_fmadd_ps(_mm512_load_ps(from), s0, left[r]);
    left[r] = _mm512_fmadd_ps(_mm512_load_ps(from + 512), s2, left[r]);
    __m512 other = _mm512_load_ps(right + r * 16);
    other = _mm512_fmadd_ps(_mm512_load_ps(from + 256), s1, other);
    other = _mm512_fmadd_ps(_mm512_load_ps(from + 768), s3, other);
    _mm512_store_ps(right + r * 16, other);
  });
}

/// Two groups, `Steps` tiles deep each, to four tiles in memory; meanwhile adds those of the two
/// groups before, if `Adds`.
template <int Steps, bool Adds>
[[gnu::always_inline]] inline void multiply_groups(
    const std::byte* x,
    int64_t stride,
    const std::byte* panel,
    float* to,
    const float* before,
    const float* scales,
    __m512* left,
    float* right) {
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  unrolled_as<2 * Steps>([&]<int I>() ZMLX_INLINED {
    constexpr int rows = 4 / Steps;
    constexpr int x_tile = 4 + I % 2;
    constexpr int sums = I / Steps * 2;
    load_tile<x_tile>(x + I * tile_bytes, stride);
    load_tile<6>(panel + I * tile_pair_bytes, 128);
    if constexpr (Adds) {
      add_scaled<2 * I * rows, rows>(before, scales, left, right);
    }
    multiply_bf16_tiles<sums, x_tile, 6>();
    load_tile<7>(panel + I * tile_pair_bytes + 64, 128);
    if constexpr (Adds) {
      add_scaled<2 * I * rows + rows, rows>(before, scales, left, right);
    }
    multiply_bf16_tiles<sums + 1, x_tile, 7>();
    if constexpr (I % Steps == Steps - 1) {
      store_tile<sums>(to + sums * 256, tile_bytes);
      store_tile<sums + 1>(to + sums * 256 + 256, tile_bytes);
    }
  });
}

/// Sums += up to 16 rows of x times codes, times scales [group][32], for pairs of groups.
template <int Steps>
void multiply_scaled(
    TileScope& scope,
    Scratch& scratch,
    const Block& block,
    const std::byte* panel,
    int64_t pairs,
    const float* scales,
    const Sums& sums) {
  scope.set_rows(block.count, block.count);
  const auto kept = [&](int r, int half)
                        ZMLX_INLINED { return r < block.count ? sums.keep[half] : __mmask16{0}; };
  alignas(64) float right[256];
  __m512 left[16];
  unrolled<16>([&](int r) ZMLX_INLINED {
    const float* from = sums.out + r * sums.ld;
    const int fresh = sums.fresh ? 0 : 0xffff;
    left[r] = _mm512_maskz_loadu_ps(static_cast<__mmask16>(kept(r, 0) & fresh), from);
    const auto other = static_cast<__mmask16>(kept(r, 1) & fresh);
    _mm512_store_ps(right + r * 16, _mm512_maskz_loadu_ps(other, from + 16));
  });
  const std::byte* x = block.x;
  float* to = scratch.tiles[0][0];
  float* before = scratch.tiles[1][0];
  multiply_groups<Steps, false>(x, block.stride, panel, to, before, scales, left, right);
  for (int64_t pair = 1; pair < pairs; ++pair) {
    x += 2 * Steps * tile_bytes;
    panel += 2 * Steps * tile_pair_bytes;
    std::swap(to, before);
    multiply_groups<Steps, true>(x, block.stride, panel, to, before, scales, left, right);
    scales += 2 * panel_outputs;
  }
  add_scaled<0, 16>(to, scales, left, right);
  unrolled<16>([&](int r) ZMLX_INLINED {
    float* out = sums.out + r * sums.ld;
    _mm512_mask_storeu_ps(out, kept(r, 0), left[r]);
    _mm512_mask_storeu_ps(out + 16, kept(r, 1), _mm512_load_ps(right + r * 16));
  });
}

/// Whether codes times these scales have exponents that bf16 knows, far from what products flush.
template <Code C>
bool fits_bf16(const float* scales, int64_t count) {
  if constexpr (C == Code::nvfp4) {
    return true;
  } else {
    __m512i least = _mm512_set1_epi32(0x3f800000);
    __m512i most = least;
    for (int64_t i = 0; i < count; i += 16) {
      const __m512i bits = _mm512_load_si512(scales + i);
      // Zero is the scale of rows that are not there.
      const __mmask16 some = _mm512_test_epi32_mask(bits, bits);
      least = _mm512_mask_min_epu32(least, some, least, bits);
      most = _mm512_max_epu32(most, bits);
    }
    return _mm512_reduce_min_epu32(least) >= (16u << 23) &&
        _mm512_reduce_max_epu32(most) <= (240u << 23);
  }
}

/// Multiplies a panel's codes by their scales [group][32].
template <Code C>
void put_scales_in(std::byte* panel, const float* scales, int64_t groups, int64_t group_size) {
  for (int64_t g = 0; g < groups; ++g, scales += panel_outputs) {
    for (int half = 0; half < 2; ++half) {
      std::byte* at = panel + g * group_size * 64 + half * 64;
      const __m512 scale = _mm512_load_ps(scales + half * 16);
      const __m512i magnitude = _mm512_set1_epi16(0x7fff);
      if constexpr (C == Code::nvfp4) {
        const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
        for (int64_t pair = 0; pair < group_size / 2; ++pair, at += 128) {
          const __m512i v = _mm512_load_si512(at);
          const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
          const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(v, upper));
          const __m512i low = _mm512_castps_si512(_mm512_mul_ps(even, scale));
          const __m512i high = _mm512_castps_si512(_mm512_mul_ps(odd, scale));
          const __m512i low_half = _mm512_srli_epi32(low, 16);
          _mm512_store_si512(at, _mm512_or_si512(low_half, _mm512_and_si512(high, upper)));
        }
      } else {
        // A power of two is an addition to exponents, but not of zero or NaN.
        const __m512i bits = _mm512_castps_si512(scale);
        const __m512i power = _mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f800000));
        const __m512i shift = _mm512_or_si512(
            _mm512_and_si512(power, _mm512_set1_epi32(static_cast<int>(0xffff0000))),
            _mm512_srli_epi32(power, 16));
        for (int64_t pair = 0; pair < group_size / 2; ++pair, at += 128) {
          const __m512i v = _mm512_load_si512(at);
          __mmask32 finite = _mm512_test_epi16_mask(v, magnitude);
          if constexpr (C == Code::mxfp8) {
            finite = _mm512_mask_cmplt_epu16_mask(
                finite, _mm512_and_si512(v, magnitude), _mm512_set1_epi16(0x7f80));
          }
          _mm512_store_si512(at, _mm512_mask_add_epi16(v, finite, v, shift));
        }
      }
    }
  }
}

/// What one run needs for a part of k: 32 outputs' weights, and rows that an index scatters.
struct Buffers {
  static constexpr int64_t row_stride = most_depth * 2 + 64;
  alignas(64) std::byte codes[panel_outputs * most_depth * 2];
  alignas(64) float scales[panel_outputs * most_depth / 16];
  alignas(64) std::byte rows[most_scattered * row_stride];
  Scratch scratch;
};

/// Bytes [at, at + bytes) of the rows, side by side.
Block block_of(const Rows& rows, size_t row_bytes, int64_t at, int64_t bytes, Buffers& buffers) {
  if (!rows.index) {
    return {rows.prepared + at, static_cast<int64_t>(row_bytes), rows.count};
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const auto* x = rows.prepared + rows.index[i] * row_bytes + at;
    std::memcpy(buffers.rows + i * Buffers::row_stride, x, static_cast<size_t>(bytes));
  }
  return {buffers.rows, Buffers::row_stride, rows.count};
}

/// Calls f(rows, first row) for up to 32 rows at a time.
template <typename F>
void for_tiles(const Block& block, F&& f) {
  for (int64_t i = 0; i < block.count; i += 2 * tile_rows) {
    const int64_t count = std::min(2 * tile_rows, block.count - i);
    f(Block{block.x + i * block.stride, block.stride, count}, i);
  }
}

Sums sums_of(float* out, int64_t ld, int64_t width, bool fresh) {
  return {out, ld, {first_lanes(width), first_lanes(width - 16)}, fresh};
}

/// out = biases times the sums of groups.
void add_biases(
    TileScope& scope,
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld,
    Buffers& buffers) {
  // The biases are a dense weight.
  const MatmulShape biases{Dtype::bf16, {}, s.groups()};
  constexpr int64_t step = most_depth / sum_parts / sum_groups * sum_groups; // groups at once
  for (int64_t g = 0; g < s.groups(); g += step) {
    const int64_t end = std::min(g + step, s.groups());
    const int64_t tiles = (end - g + sum_groups - 1) / sum_groups;
    const int64_t at = element_bytes(s) + g * sum_parts * 2;
    const Block all = block_of(rows, row_bytes, at, tiles * sum_parts * tile_bytes, buffers);
    for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
      const int64_t width = std::min(panel_outputs, outputs.end - j);
      const auto* from = static_cast<const uint8_t*>(w.biases) + j * biases.row_bytes();
      fill_panel<Code::dense>(biases, from, width, {g / 2, (end + 1) / 2}, buffers.codes);
      for_tiles(all, [&](const Block& block, int64_t i) {
        const Sums sums = sums_of(out + i * ld + j - outputs.begin, ld, width, g == 0);
        multiply_plain<sum_parts>(scope, buffers.scratch, block, buffers.codes, tiles, sums);
      });
    }
  }
}

/// Up to 32 rows times the panel.
template <Code C>
void multiply(
    TileScope& scope,
    const MatmulShape& s,
    const Block& block,
    bool scaled,
    Range depth,
    const Sums& sums,
    Buffers& buffers) {
  auto& [codes, scales, rows, scratch] = buffers;
  if (C == Code::dense || scaled) {
    const int64_t tiles = (depth.end - depth.begin + tile_depth - 1) / tile_depth;
    return multiply_plain<1>(scope, scratch, block, codes, tiles, sums);
  }
  const int64_t pair = 2 * s.format.group_size;
  const int64_t pairs = (depth.end - depth.begin + pair - 1) / pair;
  for (int64_t i = 0; i < block.count; i += tile_rows) {
    const Block part{
        block.x + i * block.stride, block.stride, std::min(tile_rows, block.count - i)};
    Sums to = sums;
    to.out += i * sums.ld;
    if (is_affine(C) && s.format.group_size == 64) {
      multiply_scaled<2>(scope, scratch, part, codes, pairs, scales, to);
    } else if (is_affine(C) && s.format.group_size == 128) {
      multiply_scaled<4>(scope, scratch, part, codes, pairs, scales, to);
    } else {
      multiply_scaled<1>(scope, scratch, part, codes, pairs, scales, to);
    }
  }
}

/// Decodes codes and scales of groups and returns whether the scales are in the codes.
template <Code C>
bool fill(
    const MatmulShape& s,
    const Weight& w,
    int64_t row,
    int64_t height,
    Range depth,
    Buffers& buffers) {
  constexpr int64_t word_codes = 2 * planes_of(C);
  const int64_t group = s.format.group_size;
  // Groups are multiplied in pairs, an odd one with zeros.
  const int64_t end = s.format.bits ? round_up(depth.end, 2 * group) : depth.end;
  const Range words{depth.begin / word_codes, (end + word_codes - 1) / word_codes};
  const auto* codes = static_cast<const uint8_t*>(w.codes) + row * s.row_bytes();
  fill_panel<C>(s, codes, height, words, buffers.codes);
  if constexpr (C != Code::dense) {
    const int64_t size = s.scale_bytes();
    const auto* scales = static_cast<const std::byte*>(w.scales) + row * s.groups() * size;
    const Range groups{depth.begin / group, depth.end / group};
    const int64_t count = groups.end - groups.begin;
    fill_scales(scales, size, s.groups(), height, groups, buffers.scales, load_scales<C>);
    if (count % 2) {
      std::fill_n(buffers.scales + count * panel_outputs, panel_outputs, 0.0f);
    }
    if constexpr (takes_scales(C)) {
      if (fits_bf16<C>(buffers.scales, count * panel_outputs)) {
        put_scales_in<C>(buffers.codes, buffers.scales, count, group);
        return true;
      }
    }
  }
  return false;
}

template <Code C>
void run_as(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  if (rows.index && rows.count > most_scattered) {
    Rows part{rows.prepared, most_scattered, rows.index};
    run_as<C>(s, w, outputs, part, row_bytes, out, ld);
    part = {rows.prepared, rows.count - most_scattered, rows.index + most_scattered};
    return run_as<C>(s, w, outputs, part, row_bytes, out + most_scattered * ld, ld);
  }
  if (rows.count == 0) {
    return;
  }
  Buffers buffers;
  TileScope scope;
  if constexpr (is_affine(C)) {
    add_biases(scope, s, w, outputs, rows, row_bytes, out, ld, buffers);
  }
  for (int64_t k = 0; k < s.k; k += most_depth) {
    const Range depth{k, std::min(k + most_depth, s.k)};
    const int64_t bytes = std::min(most_depth * 2, element_bytes(s) - k * 2);
    const Block all = block_of(rows, row_bytes, k * 2, bytes, buffers);
    for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
      const int64_t width = std::min(panel_outputs, outputs.end - j);
      const bool scaled = fill<C>(s, w, j, width, depth, buffers);
      for_tiles(all, [&](const Block& block, int64_t i) {
        const bool fresh = !is_affine(C) && k == 0;
        const Sums sums = sums_of(out + i * ld + j - outputs.begin, ld, width, fresh);
        multiply<C>(scope, s, block, scaled, depth, sums, buffers);
      });
    }
  }
}

/// The functions for each Code, in its order.
struct Functions {
  decltype(&prepared_bytes_as<Code::dense>) prepared_bytes;
  decltype(&prepare_as<Code::dense>) prepare;
  decltype(&run_as<Code::dense>) run;
};

template <Code... C>
constexpr std::array<Functions, sizeof...(C)> functions_of() {
  return {Functions{prepared_bytes_as<C>, prepare_as<C>, run_as<C>}...};
}

const Functions& functions(const MatmulShape& s) {
  using enum Code;
  static constexpr auto all = functions_of<
      dense,
      affine2,
      affine3,
      affine4,
      affine5,
      affine6,
      affine8,
      mxfp4,
      mxfp8,
      nvfp4>();
  return all[static_cast<size_t>(code_of(s.format))];
}

size_t prepared_bytes(const MatmulShape& s) {
  return functions(s).prepared_bytes(s);
}

void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  functions(s).prepare(s, x, to);
}

void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  functions(s).run(s, w, outputs, rows, row_bytes, out, ld);
}

} // namespace

const MatmulKernels* amx_bf16_matmul() {
  static const MatmulKernels kernels{"AMX_BF16", prepared_bytes, prepare, run, true};
  return bf16_matmul() && tiles().bf16 ? &kernels : nullptr;
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* amx_bf16_matmul() {
  return nullptr;
}

} // namespace zmlx::cpu

#endif
