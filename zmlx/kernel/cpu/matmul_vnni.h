// zmlx/kernel/cpu/matmul_vnni.h: what the matmuls by AVX-512's sums of four products of bytes
// share: codes and activations as bytes, and few rows of activations at once. Included with the
// flags of the instruction set alone.
#pragma once

#include <bit>
#include <cstddef>

#include "zmlx/kernel/cpu/matmul_avx512.h"

namespace zmlx::cpu {
// Each file that includes this has flags, so copies, of its own.
namespace {

/// Bytes of a weight row that fill 64 bytes of codes.
constexpr int64_t vector_bytes(Code code) {
  return is_spread(code) ? 8 * bits_of(code) : 64;
}

constexpr int64_t block_of(Code code) {
  return 64 * byte_planes(code);
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
inline __m512 load_floats(Dtype dtype, const std::byte* x, int64_t i) {
  switch (dtype) {
    case Dtype::bf16:
      return floats(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * 2)));
    case Dtype::f16:
      return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i * 2)));
    default:
      return _mm512_loadu_ps(x + i * 4);
  }
}

/// The largest magnitude of `count` elements, NaN if one is; a multiple of 16 of them.
inline float largest_of(Dtype dtype, const std::byte* x, int64_t count) {
  // As integers magnitudes are in order, and NaN is the largest.
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512i bits = _mm512_castps_si512(load_floats(dtype, x, i));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, magnitude));
  }
  return std::bit_cast<float>(_mm512_reduce_max_epu32(largest));
}

/// 16 elements times a factor as integers; no numbers become 0.
inline __m512i round_16(Dtype dtype, const std::byte* x, int64_t i, __m512 factor) {
  const __m512 value = _mm512_mul_ps(load_floats(dtype, x, i), factor);
  return _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(value, value, _CMP_ORD_Q), value);
}

/// Turns bytes in natural order into planes, `size` of them in whole blocks; in place if `to` is
/// `from`.
template <Code C>
void order_planes(const std::byte* from, std::byte* to, int64_t size) {
  constexpr int planes = byte_planes(C);
  for (int64_t b = 0; b < size; b += block_of(C)) {
    __m512i v[planes];
    for (int i = 0; i < planes; ++i) {
      v[i] = _mm512_load_si512(from + b + 64 * i);
    }
    to_planes<planes>(v);
    for (int i = 0; i < planes; ++i) {
      _mm512_store_si512(to + b + 64 * i, v[i]);
    }
  }
}

/// Writes what the offset of unsigned codes adds to each lane's sum, negated; `size` bytes of a
/// term.
template <Code C, typename Row>
void fill_lanes(const Row& row, std::byte* x, int64_t size) {
  constexpr int planes = byte_planes(C);
  const __m512i offset = _mm512_set1_epi8(e2m1_offset);
  for (int64_t b = 0; b < size; b += block_of(C)) {
    __m512i total = _mm512_setzero_si512();
    const auto add = [&](int64_t term) {
      for (int c = 0; c < planes; ++c) {
        total = _mm512_dpbusd_epi32(total, offset, _mm512_load_si512(x + term + b + 64 * c));
      }
    };
    if constexpr (Row::terms == 2) {
      add(0);
      total = _mm512_slli_epi32(total, 8);
    }
    add(row.low_at);
    _mm512_store_si512(
        x + row.lanes_at + b / planes, _mm512_sub_epi32(_mm512_setzero_si512(), total));
  }
}

// Weights: from packed codes to bytes.

/// Scales of 16 groups, or biases; zero past the last.
template <Code C>
[[gnu::always_inline]] inline __m512 load_scales_of(Dtype dtype, const std::byte* p, int64_t left) {
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
/// `Row` says where the parts of a prepared row lie, and of how many terms its integers are: with
/// two, 256 times a high byte and a low one, which lie in planes `low_at` bytes further.
template <Code C, typename Row, int R, int M>
void dot_few(
    const MatmulShape& s,
    const Weight& w,
    int64_t j,
    const std::byte* const* x,
    float* out,
    int64_t ld) {
  constexpr int planes = byte_planes(C);
  constexpr int64_t lane_codes = 4 * planes;
  const Row row(s, C);
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
  int64_t passed = 0;
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
        fetch_codes(codes, passed + r * vector_bytes(C));
        const __m512i packed = load_codes<C>(codes + r * row_bytes + at, row_bytes - at);
        __m512i values[planes];
        unrolled<planes>([&](int c) ZMLX_INLINED { values[c] = plane<C>(packed, c); });
        __m512i part[M];
        const auto add = [&](int m, int64_t term) ZMLX_INLINED {
          unrolled<planes>([&](int c) ZMLX_INLINED {
            const __m512i value = _mm512_load_si512(x[m] + term + lane * lane_codes + c * 64);
            part[m] = _mm512_dpbusd_epi32(part[m], values[c], value);
          });
        };
        unrolled<M>([&](int m) ZMLX_INLINED {
          const __m512i start = is_affine(C) ? _mm512_setzero_si512()
                                             : _mm512_load_si512(x[m] + row.lanes_at + lane * 4);
          if constexpr (Row::terms == 2) {
            part[m] = _mm512_setzero_si512();
            add(m, 0);
            part[m] = _mm512_add_epi32(_mm512_slli_epi32(part[m], 8), start);
          } else {
            part[m] = start;
          }
          add(m, row.low_at);
        });
        unrolled<M>([&](int m) ZMLX_INLINED {
          const __m512 lane_scale = _mm512_permutexvar_ps(lane_group, scale[r][m]);
          total[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part[m]), lane_scale, total[r][m]);
        });
      }
      passed += R * vector_bytes(C);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      out[m * ld + r] = _mm512_reduce_add_ps(total[r][m]);
    }
  }
}

inline const std::byte* row_of(const Rows& rows, size_t row_bytes, int64_t i) {
  const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
  return rows.prepared + at * row_bytes;
}

template <Code C, typename Row, int R, int M>
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
    dot_few<C, Row, R, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
  for (; j < outputs.end; ++j) {
    dot_few<C, Row, 1, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
}

} // namespace
} // namespace zmlx::cpu
