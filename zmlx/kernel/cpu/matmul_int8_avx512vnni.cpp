// zmlx/kernel/cpu/matmul_int8_avx512vnni.cpp: matmul of 8-bit activations by AVX-512's sums of four
// products of bytes. Sums within a group are exact integers; groups are added up in float32.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "zmlx/kernel/cpu/matmul_avx512.h"
#include "zmlx/kernel/cpu/matmul_int8.h"

namespace zmlx::cpu {
namespace {

/// Bytes of a weight row that fill 64 bytes of codes.
constexpr int64_t vector_bytes(Code code) {
  return is_spread(code) ? 8 * bits_of(code) : 64;
}

constexpr int64_t block_of(Code code) {
  return 64 * int8_planes(code);
}

/// Twice an e2m1 value is a whole number from -12 to 12; the offset makes it unsigned.
constexpr int e2m1_offset = 12;

constexpr Bytes make_e2m1() {
  Bytes table{};
  for (int i = 0; i < 64; ++i) {
    const float value = 2 * from_e2m1(static_cast<uint32_t>(i & 15));
    table.values[i] = static_cast<uint8_t>(static_cast<int>(value) + e2m1_offset);
  }
  return table;
}
constexpr Bytes unsigned_e2m1 = make_e2m1();

// Activations: from a row of floats to the integers' two orders.

/// Byte i of group order, among 128 bytes, is this one of natural order.
constexpr std::array<uint8_t, 128> make_group_order(int planes, int group) {
  std::array<uint8_t, 128> table{};
  for (int i = 0; i < 128; ++i) {
    const int in_group = i % group;
    const int in_plane = group / planes;
    const int at = i / group * group + in_group % in_plane * planes + in_group / in_plane;
    table[static_cast<size_t>(i)] = static_cast<uint8_t>(at);
  }
  return table;
}
template <int Planes, int Group>
alignas(64) constexpr std::array<uint8_t, 128> group_order = make_group_order(Planes, Group);

template <int Planes>
const uint8_t* group_order_of(int64_t group) {
  switch (group) {
    case 16:
      return group_order<Planes, 16>.data();
    case 32:
      return group_order<Planes, 32>.data();
    case 64:
      return group_order<Planes, 64>.data();
    default:
      return group_order<Planes, 128>.data();
  }
}

constexpr Bytes make_every_second(int which) {
  Bytes table{};
  for (int i = 0; i < 64; ++i) {
    table.values[i] = static_cast<uint8_t>(2 * i + which);
  }
  return table;
}
constexpr Bytes even_bytes = make_every_second(0);
constexpr Bytes odd_bytes = make_every_second(1);

/// Turns `Planes` vectors of consecutive bytes into planes.
template <int Planes>
[[gnu::always_inline]] inline void to_planes(__m512i* v) {
  if constexpr (Planes > 1) {
    constexpr int half = Planes / 2;
    __m512i even[half];
    __m512i odd[half];
    for (int i = 0; i < half; ++i) {
      even[i] = _mm512_permutex2var_epi8(v[2 * i], bytes(even_bytes), v[2 * i + 1]);
      odd[i] = _mm512_permutex2var_epi8(v[2 * i], bytes(odd_bytes), v[2 * i + 1]);
    }
    to_planes<half>(even);
    to_planes<half>(odd);
    for (int i = 0; i < half; ++i) {
      v[2 * i] = even[i];
      v[2 * i + 1] = odd[i];
    }
  }
}

/// 16 elements as floats.
__m512 load_floats(Dtype dtype, const std::byte* x, int64_t i) {
  switch (dtype) {
    case Dtype::bf16:
      return floats(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * 2)));
    case Dtype::f16:
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * 2)));
    default:
      return _mm512_loadu_ps(x + i * 4);
  }
}

/// Rounds a row's groups to integers in natural order at `to`, and writes scales and sums.
template <Code C>
void round_row(const MatmulShape& s, const std::byte* x, int8_t* to, float* scales, void* sums) {
  const int64_t size = s.format.group_size;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < s.groups(); ++g) {
    const int64_t at = g * size;
    // As integers magnitudes are in order, and NaN is the largest.
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += 16) {
      const __m512i bits = _mm512_castps_si512(load_floats(s.dtype, x, at + i));
      largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
    }
    const auto [inverse, scale] =
        int8_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(largest)));
    const __m512 factor = _mm512_set1_ps(inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += 16) {
      const __m512 value = _mm512_mul_ps(load_floats(s.dtype, x, at + i), factor);
      // Zero times infinity is no number.
      const __m512i whole =
          _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(value, value, _CMP_ORD_Q), value);
      total = _mm512_add_epi32(total, whole);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at + i), _mm512_cvtepi32_epi8(whole));
    }
    const int sum = _mm512_reduce_add_epi32(total);
    scales[g] = scale;
    if constexpr (is_affine(C)) {
      static_cast<float*>(sums)[g] = scale * static_cast<float>(sum);
    } else {
      static_cast<int32_t*>(sums)[g] = -e2m1_offset * sum;
    }
  }
}

template <Code C>
size_t prepared_bytes_as(const MatmulShape& s) {
  return static_cast<size_t>(Int8Row(s, C).bytes);
}

template <Code C>
void prepare_as(const MatmulShape& s, const void* x, std::byte* to) {
  constexpr int planes = int8_planes(C);
  const Int8Row row(s, C);
  std::byte* natural = to + row.groups_at;
  auto* scales = reinterpret_cast<float*>(to + row.scales_at);
  const int64_t tail = (s.groups() + 15) / 16 * 16 - s.groups();
  std::fill_n(scales + s.groups(), tail, 0.0f);
  std::fill_n(reinterpret_cast<float*>(to + row.sums_at) + s.groups(), tail, 0.0f);
  std::fill_n(natural + s.k, row.padded - s.k, std::byte{0});
  round_row<C>(
      s,
      static_cast<const std::byte*>(x),
      reinterpret_cast<int8_t*>(natural),
      scales,
      to + row.sums_at);
  if constexpr (planes > 1) {
    const uint8_t* order = group_order_of<planes>(s.format.group_size);
    const __m512i first = _mm512_load_si512(order);
    const __m512i second = _mm512_load_si512(order + 64);
    for (int64_t b = 0; b < row.padded; b += block_of(C)) {
      __m512i v[planes];
      for (int i = 0; i < planes; ++i) {
        v[i] = _mm512_load_si512(natural + b + 64 * i);
      }
      for (int i = 0; i < planes; i += 2) {
        std::byte* pair = natural + b + 64 * i;
        _mm512_store_si512(pair, _mm512_permutex2var_epi8(v[i], first, v[i + 1]));
        _mm512_store_si512(pair + 64, _mm512_permutex2var_epi8(v[i], second, v[i + 1]));
      }
      to_planes<planes>(v);
      for (int i = 0; i < planes; ++i) {
        _mm512_store_si512(to + b + 64 * i, v[i]);
      }
    }
  }
  if constexpr (!is_affine(C)) {
    const __m512i offset = _mm512_set1_epi8(e2m1_offset);
    for (int64_t b = 0; b < row.padded; b += block_of(C)) {
      __m512i total = _mm512_setzero_si512();
      for (int c = 0; c < planes; ++c) {
        total = _mm512_dpbusd_epi32(total, offset, _mm512_load_si512(to + b + 64 * c));
      }
      _mm512_store_si512(
          to + row.lanes_at + b / planes, _mm512_sub_epi32(_mm512_setzero_si512(), total));
    }
  }
}

// Weights: from packed codes to bytes.

/// Scales of 16 groups, or biases; zero past the last.
template <Code C>
__m512 load_scales_of(Dtype dtype, const std::byte* p, int64_t left) {
  if constexpr (is_affine(C)) {
    switch (dtype) {
      case Dtype::f32:
        return _mm512_maskz_loadu_ps(first_lanes(left), p);
      case Dtype::f16:
        return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(left), p));
      default:
        return load_scales<C>(p, left);
    }
  } else {
    // Codes are twice the values.
    return _mm512_mul_ps(load_scales<C>(p, left), _mm512_set1_ps(0.5f));
  }
}

/// 64 bytes of codes, of which a row has `left` more bytes; zero past its end.
template <Code C>
[[gnu::always_inline]] inline __m512i load_codes(const uint8_t* p, int64_t left) {
  __m512i v;
  if (left >= 64) [[likely]] {
    v = _mm512_loadu_si512(p);
  } else {
    v = _mm512_maskz_loadu_epi8(first_bytes(left), p);
  }
  if constexpr (is_spread(C)) {
    const __m512i places = bytes(spread_of<bits_of(C)>);
    v = _mm512_multishift_epi64_epi8(bytes(bit_of<bits_of(C)>), _mm512_permutexvar_epi8(places, v));
  }
  return v;
}

/// Plane c of codes as unsigned bytes.
template <Code C>
[[gnu::always_inline]] inline __m512i plane(__m512i packed, int c) {
  constexpr int bits = bits_of(C);
  if constexpr (bits == 8) {
    return packed;
  } else {
    const __m512i low = _mm512_set1_epi8((1 << bits) - 1);
    const __m512i codes = c ? _mm512_srli_epi16(packed, static_cast<unsigned>(bits * c)) : packed;
    const __m512i whole = _mm512_and_si512(codes, low);
    return is_affine(C) ? whole : _mm512_shuffle_epi8(bytes(unsigned_e2m1), whole);
  }
}

/// R weight rows, from row `j` on, times M rows of activations, codes used as they are decoded.
template <Code C, int R, int M>
void dot_few(
    const MatmulShape& s,
    const Weight& w,
    int64_t j,
    const std::byte* const* x,
    float* out,
    int64_t ld) {
  constexpr int planes = int8_planes(C);
  constexpr int64_t lane_codes = 4 * planes;
  const Int8Row row(s, C);
  const int64_t row_bytes = s.row_bytes();
  const int64_t size = s.scale_bytes();
  const int64_t groups = s.groups();
  const int64_t lanes = s.k / lane_codes;
  const int64_t group_lanes = s.format.group_size / lane_codes;
  const int lanes_log2 = std::countr_zero(static_cast<uint64_t>(group_lanes));
  auto* codes = static_cast<const uint8_t*>(w.codes) + j * row_bytes;
  auto* scales = static_cast<const std::byte*>(w.scales) + j * groups * size;
  auto* biases = static_cast<const std::byte*>(w.biases) + (is_affine(C) ? j * groups * size : 0);
  __m512 total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = _mm512_setzero_ps();
    }
  }
  int64_t ahead = codes_ahead;
  for (int64_t g = 0; g < groups; g += 16) {
    __m512 scale[R][M];
    for (int64_t line = 0; line < R * 16 * size; line += 64) {
      fetch(scales, scales_ahead + g * size * R + line);
      if constexpr (is_affine(C)) {
        fetch(biases, scales_ahead + g * size * R + line);
      }
    }
    for (int r = 0; r < R; ++r) {
      const int64_t at = (r * groups + g) * size;
      const __m512 own = load_scales_of<C>(s.dtype, scales + at, groups - g);
      for (int m = 0; m < M; ++m) {
        scale[r][m] = _mm512_mul_ps(own, _mm512_load_ps(x[m] + row.scales_at + g * 4));
      }
      if constexpr (is_affine(C)) {
        const __m512 bias = load_scales_of<C>(s.dtype, biases + at, groups - g);
        for (int m = 0; m < M; ++m) {
          const __m512 sum = _mm512_load_ps(x[m] + row.sums_at + g * 4);
          total[r][m] = _mm512_fmadd_ps(bias, sum, total[r][m]);
        }
      }
    }
    const int64_t first = g * group_lanes;
    const int64_t last = std::min(lanes, first + 16 * group_lanes);
    for (int64_t lane = first; lane < last; lane += 16) {
      const __m512i lane_group = group_of_lane((lane - first) / 16, lanes_log2);
      const int64_t at = lane / 16 * vector_bytes(C);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        fetch(codes, ahead + r * vector_bytes(C));
        const __m512i packed = load_codes<C>(codes + r * row_bytes + at, row_bytes - at);
        __m512i part[M];
        unrolled<M>([&](int m) ZMLX_INLINED {
          part[m] = is_affine(C) ? _mm512_setzero_si512()
                                 : _mm512_load_si512(x[m] + row.lanes_at + lane * 4);
        });
        unrolled<planes>([&](int c) ZMLX_INLINED {
          const __m512i values = plane<C>(packed, c);
          unrolled<M>([&](int m) ZMLX_INLINED {
            const __m512i value = _mm512_load_si512(x[m] + lane * lane_codes + c * 64);
            part[m] = _mm512_dpbusd_epi32(part[m], values, value);
          });
        });
        unrolled<M>([&](int m) ZMLX_INLINED {
          const __m512 lane_scale = _mm512_permutexvar_ps(lane_group, scale[r][m]);
          total[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[m]), lane_scale, total[r][m]);
        });
      }
      ahead += R * vector_bytes(C);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      out[m * ld + r] = _mm512_reduce_add_ps(total[r][m]);
    }
  }
}

const std::byte* row_of(const Rows& rows, size_t row_bytes, int64_t i) {
  const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
  return rows.prepared + at * row_bytes;
}

template <Code C, int R, int M>
void run_few(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  const std::byte* x[M];
  for (int m = 0; m < M; ++m) {
    x[m] = row_of(rows, row_bytes, m);
  }
  int64_t j = outputs.begin;
  for (; outputs.end - j >= R; j += R) {
    dot_few<C, R, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
  for (; j < outputs.end; ++j) {
    dot_few<C, 1, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
}

constexpr int64_t panel_codes = 2048; // of each weight row in a panel

/// Decodes elements [begin, end) of `height` rows; begin is a multiple of panel_codes. Missing rows
/// become zero.
template <Code C>
void fill_panel(
    const MatmulShape& s,
    const uint8_t* codes,
    int64_t height,
    Range part,
    std::byte* panel) {
  constexpr int planes = int8_planes(C);
  constexpr int64_t lane_codes = 4 * planes;
  const int64_t row_bytes = s.row_bytes();
  const int64_t group_lanes = s.format.group_size / lane_codes;
  const int lanes_log2 = std::countr_zero(static_cast<uint64_t>(group_lanes));
  const int64_t lanes = (part.end - part.begin) / lane_codes;
  for (int64_t lane = 0; lane < lanes; lane += 16) {
    const int64_t at = (part.begin / lane_codes + lane) / 16 * vector_bytes(C);
    // The same piece of the next panel, in the order of addresses.
    for (int64_t line = 0; line < panel_outputs * vector_bytes(C); line += 64) {
      fetch(codes, panel_outputs * (row_bytes + at) + line);
    }
    for (int64_t half = 0; half < 2; ++half) {
      __m512i v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = half * 16 + i;
        v[i] = row < height ? load_codes<C>(codes + row * row_bytes + at, row_bytes - at)
                            : _mm512_setzero_si512();
      }
      transpose(v);
      const int64_t count = std::min<int64_t>(16, lanes - lane);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t group = (lane + i) >> lanes_log2;
        const int64_t in_group = (lane + i) & (group_lanes - 1);
        std::byte* to = panel + (group * group_lanes * planes + in_group) * 128 + half * 64;
        for (int c = 0; c < planes; ++c) {
          _mm512_store_si512(to + c * group_lanes * 128, plane<C>(v[i], c));
        }
      }
    }
  }
}

/// M rows of activations times a panel, added to out (or stored, by the first panel).
template <bool Affine, int M>
void multiply(
    const Int8Panel& p,
    const Int8Row& row,
    const std::byte* const* x,
    bool first,
    __mmask16 keep0,
    __mmask16 keep1,
    float* out,
    int64_t ld) {
  const std::byte* codes = p.codes;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t number = p.first_group + group;
    const int64_t at = row.groups_at + number * p.group_size;
    __m512i part[M][2];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      int start = 0;
      if constexpr (!Affine) {
        std::memcpy(&start, x[m] + row.sums_at + number * 4, 4);
      }
      part[m][0] = part[m][1] = _mm512_set1_epi32(start);
    }
    for (int64_t i = 0; i < p.group_size; i += 4) {
      const __m512i w0 = _mm512_load_si512(codes);
      const __m512i w1 = _mm512_load_si512(codes + 64);
      codes += 128;
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        int four;
        std::memcpy(&four, x[m] + at + i, 4);
        const __m512i value = _mm512_set1_epi32(four);
        part[m][0] = _mm512_dpbusd_epi32(part[m][0], w0, value);
        part[m][1] = _mm512_dpbusd_epi32(part[m][1], w1, value);
      }
    }
    const bool fresh = first && group == 0;
    const __m512 scale0 = _mm512_load_ps(p.scales + group * panel_outputs);
    const __m512 scale1 = _mm512_load_ps(p.scales + group * panel_outputs + 16);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      float* to = out + m * ld;
      __m512 t0 = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(keep0, to);
      __m512 t1 = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(keep1, to + 16);
      float own;
      std::memcpy(&own, x[m] + row.scales_at + number * 4, 4);
      const __m512 scale = _mm512_set1_ps(own);
      t0 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[m][0]), _mm512_mul_ps(scale0, scale), t0);
      t1 = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[m][1]), _mm512_mul_ps(scale1, scale), t1);
      if constexpr (Affine) {
        float total;
        std::memcpy(&total, x[m] + row.sums_at + number * 4, 4);
        const __m512 sum = _mm512_set1_ps(total);
        const float* biases = p.biases + group * panel_outputs;
        t0 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases), t0);
        t1 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases + 16), t1);
      }
      _mm512_mask_storeu_ps(to, keep0, t0);
      _mm512_mask_storeu_ps(to + 16, keep1, t1);
    }
  }
}

constexpr int tall = 12; // rows of one multiply: 24 accumulators

template <bool Affine, int M>
void multiply_up_to(
    int64_t count,
    const Int8Panel& p,
    const Int8Row& row,
    const std::byte* const* x,
    bool first,
    __mmask16 keep0,
    __mmask16 keep1,
    float* out,
    int64_t ld) {
  if (count == M) {
    multiply<Affine, M>(p, row, x, first, keep0, keep1, out, ld);
  } else if constexpr (M > 1) {
    multiply_up_to<Affine, M - 1>(count, p, row, x, first, keep0, keep1, out, ld);
  }
}

template <Code C>
void multiply_rows(
    const Int8Panel& p,
    const Int8Row& row,
    const Rows& rows,
    size_t row_bytes,
    bool first,
    int64_t height,
    float* out,
    int64_t ld) {
  for (int64_t i = 0; i < rows.count;) {
    // The last rows in equal parts: 13 as 7 and 6, not 12 and 1.
    const int64_t left = rows.count - i;
    const int64_t parts = (left + tall - 1) / tall;
    const int64_t count = (left + parts - 1) / parts;
    const std::byte* x[tall];
    for (int64_t m = 0; m < count; ++m) {
      x[m] = row_of(rows, row_bytes, i + m);
    }
    const __mmask16 keep0 = first_lanes(height);
    const __mmask16 keep1 = first_lanes(height - 16);
    multiply_up_to<is_affine(C), tall>(count, p, row, x, first, keep0, keep1, out + i * ld, ld);
    i += count;
  }
}

template <Code C, bool Tiles>
void run_panels(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  constexpr int64_t most_groups = panel_codes / (C == Code::nvfp4 ? 16 : 32);
  alignas(64) std::byte codes[panel_outputs * panel_codes];
  alignas(64) float scales[most_groups * panel_outputs];
  alignas(64) float biases[is_affine(C) ? most_groups * panel_outputs : 1];
  const Int8Row row(s, C);
  const int64_t size = s.format.group_size;
  for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
    const int64_t height = std::min(panel_outputs, outputs.end - j);
    for (int64_t begin = 0; begin < s.k; begin += panel_codes) {
      const Range part{begin, std::min(begin + panel_codes, s.k)};
      const Range groups{part.begin / size, part.end / size};
      fill_panel<C>(
          s, static_cast<const uint8_t*>(w.codes) + j * s.row_bytes(), height, part, codes);
      auto fill = [&](const void* all, float* to) {
        const int64_t bytes = s.scale_bytes();
        auto* from = static_cast<const std::byte*>(all) + j * s.groups() * bytes;
        fill_scales(
            from, bytes, s.groups(), height, groups, to, [&](const std::byte* p, int64_t n) {
              return load_scales_of<C>(s.dtype, p, n);
            });
      };
      fill(w.scales, scales);
      if constexpr (is_affine(C)) {
        fill(w.biases, biases);
      }
      const Int8Panel panel{
          codes, scales, biases, groups.end - groups.begin, groups.begin, size, is_affine(C)};
      float* to = out + j - outputs.begin;
      if constexpr (Tiles && C != Code::nvfp4) {
        multiply_int8_tiles(panel, row, rows, row_bytes, begin == 0, height, to, ld);
      } else {
        multiply_rows<C>(panel, row, rows, row_bytes, begin == 0, height, to, ld);
      }
    }
  }
}

template <Code C, bool Tiles>
void run_as(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  switch (rows.count) {
    case 0:
      return;
    case 1:
      return run_few<C, 4, 1>(s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<C, 2, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<C, 2, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<C, 2, 4>(s, w, outputs, rows, row_bytes, out, ld);
    case 5:
      return run_few<C, 2, 5>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      break;
  }
  if (rows.count > few_rows) {
    return run_panels<C, Tiles>(s, w, outputs, rows, row_bytes, out, ld);
  }
  // Twice over the weights, which a cache still holds.
  const int64_t half = (rows.count + 1) / 2;
  Rows part{rows.prepared, half, rows.index};
  run_as<C, Tiles>(s, w, outputs, part, row_bytes, out, ld);
  part.count = rows.count - half;
  if (rows.index) {
    part.index += half;
  } else {
    part.prepared += static_cast<size_t>(half) * row_bytes;
  }
  run_as<C, Tiles>(s, w, outputs, part, row_bytes, out + half * ld, ld);
}

/// The functions for each Code with integers, in its order.
struct Functions {
  decltype(&prepared_bytes_as<Code::affine4>) prepared_bytes;
  decltype(&prepare_as<Code::affine4>) prepare;
  decltype(&run_as<Code::affine4, false>) run;
};

template <bool Tiles, Code... C>
constexpr std::array<Functions, sizeof...(C)> functions_of() {
  return {Functions{prepared_bytes_as<C>, prepare_as<C>, run_as<C, Tiles>}...};
}

template <bool Tiles>
const Functions& functions(const MatmulShape& s) {
  using enum Code;
  static constexpr auto all =
      functions_of<Tiles, affine2, affine3, affine4, affine5, affine6, affine8, mxfp4, nvfp4>();
  const Code code = code_of(s.format);
  return all[code == nvfp4 ? 7 : static_cast<size_t>(code) - 1];
}

size_t prepared_bytes(const MatmulShape& s) {
  return functions<false>(s).prepared_bytes(s);
}

void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  functions<false>(s).prepare(s, x, to);
}

template <bool Tiles>
void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  functions<Tiles>(s).run(s, w, outputs, rows, row_bytes, out, ld);
}

} // namespace

const MatmulKernels* vnni_int8_matmul() {
  static const bool here = __builtin_cpu_supports("avx512vnni") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi");
  static const MatmulKernels kernels{"AVX512_VNNI", prepared_bytes, prepare, run<false>};
  return here ? &kernels : nullptr;
}

const MatmulKernels* amx_int8_matmul() {
  static const MatmulKernels kernels{"AMX_INT8", prepared_bytes, prepare, run<true>, true};
  return vnni_int8_matmul() && has_int8_tiles() ? &kernels : nullptr;
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* vnni_int8_matmul() {
  return nullptr;
}

const MatmulKernels* amx_int8_matmul() {
  return nullptr;
}

} // namespace zmlx::cpu

#endif
