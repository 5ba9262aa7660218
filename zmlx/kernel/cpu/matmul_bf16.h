// zmlx/kernel/cpu/matmul_bf16.h: weights of every format as bf16, in which their codes are exact:
// the decoding that products of bf16 share. Included with the flags of AVX-512 and VBMI alone.
#pragma once

#include <algorithm>
#include <bit>

#include "zmlx/kernel/cpu/matmul_avx512.h"

namespace zmlx::cpu {
// Each file that includes this has flags, so copies, of its own.
namespace {

/// Codes in a 16-bit lane, each from its own shift: planes of activations are stored in the same
/// order. The lanes of a dense weight are the elements.
constexpr int planes_of(Code code) {
  switch (code) {
    case Code::dense:
      return 1;
    case Code::affine2:
      return 8;
    case Code::affine3:
    case Code::affine4:
    case Code::mxfp4:
    case Code::nvfp4:
      return 4;
    default:
      return 2;
  }
}

constexpr int bits_in(Code code) {
  return code == Code::dense ? 16 : bits_of(code);
}

/// Codes that one byte of a spread vector holds.
constexpr int codes_in_byte(Code code) {
  return planes_of(code) / 2;
}

/// Bytes of a weight row that fill 32 lanes.
constexpr int64_t vector_bytes(Code code) {
  return 4 * planes_of(code) * bits_in(code);
}

inline __mmask32 first_halves(int64_t n) {
  return n >= 32 ? __mmask32{0xffffffff}
                 : static_cast<__mmask32>((1u << std::max<int64_t>(n, 0)) - 1);
}

struct alignas(64) Lanes {
  uint16_t values[32];
};

inline __m512i lanes(const Lanes& table) {
  return _mm512_load_si512(table.values);
}

inline __m512bh bf16(__m512i v) {
  return std::bit_cast<__m512bh>(v);
}

constexpr uint16_t short_of(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

/// bf16 of codes from `first` on, times `factor`. Lookups read no more bits than they need, so that
/// codes need no mask.
template <Code C>
constexpr Lanes make_values(int first, int factor) {
  Lanes table{};
  const int bits = std::min(C == Code::affine8 ? 4 : bits_of(C), 6);
  for (int i = 0; i < 32; ++i) {
    const int code = (first + i) & ((1 << bits) - 1);
    table.values[i] = is_affine(C) ? short_of(static_cast<float>(code * factor))
                                   : short_of(from_e2m1(static_cast<uint32_t>(code)));
  }
  return table;
}
template <Code C, int First = 0, int Factor = 1>
constexpr Lanes values_of = make_values<C>(First, Factor);

/// The lower or upper bytes of bf16 of e4m3 magnitudes from `first` on.
constexpr Bytes make_e4m3(int first, int shift) {
  Bytes table{};
  for (int i = 0; i < 64; ++i) {
    const auto code = static_cast<uint32_t>(first + i);
    table.values[i] = static_cast<uint8_t>(short_of(from_e4m3(code)) >> shift);
  }
  return table;
}
template <int First, int Shift>
constexpr Bytes e4m3_bytes = make_e4m3(First, Shift);

/// What a code needs in registers.
template <Code C>
struct Tables {
  __m512i values[4] = {};
  __m512i spread = {};
  __m512i bit = {};

  [[gnu::always_inline]] Tables() {
    if constexpr (C == Code::mxfp8) {
      values[0] = bytes(e4m3_bytes<0, 0>);
      values[1] = bytes(e4m3_bytes<64, 0>);
      values[2] = bytes(e4m3_bytes<0, 8>);
      values[3] = bytes(e4m3_bytes<64, 8>);
    } else if constexpr (C != Code::dense) {
      values[0] = lanes(values_of<C>);
    }
    if constexpr (C == Code::affine6) {
      values[1] = lanes(values_of<C, 32>);
    } else if constexpr (C == Code::affine8) {
      values[1] = lanes(values_of<C, 0, 16>);
    }
    if constexpr (is_spread(C)) {
      spread = bytes(spread_of<bits_of(C) * codes_in_byte(C)>);
      bit = bytes(bit_of<bits_of(C) * codes_in_byte(C)>);
    }
  }
};

/// 32 lanes of codes, of which a row has `left` more bytes; zero past its end.
template <Code C>
[[gnu::always_inline]] inline __m512i
load_codes(const Tables<C>& tables, const uint8_t* p, int64_t left) {
  __m512i v;
  if (left >= 64) [[likely]] {
    v = _mm512_loadu_si512(p);
  } else {
    v = _mm512_maskz_loadu_epi8(first_bytes(left), p);
  }
  if constexpr (is_spread(C)) {
    v = _mm512_multishift_epi64_epi8(tables.bit, _mm512_permutexvar_epi8(tables.spread, v));
  }
  return v;
}

/// Where plane c's code begins in a 16-bit lane.
constexpr unsigned shift_of(Code code, int c) {
  const int in_byte = codes_in_byte(code);
  return static_cast<unsigned>(
      is_spread(code) ? c / in_byte * 8 + c % in_byte * bits_of(code) : c * bits_in(code));
}

inline __m512i shifted(__m512i v, unsigned by) {
  return by ? _mm512_srli_epi16(v, by) : v;
}

/// bf16 of the planes of 32 lanes.
template <Code C>
[[gnu::always_inline]] inline void planes(const Tables<C>& tables, __m512i packed, __m512i* plane) {
  if constexpr (C == Code::dense) {
    plane[0] = packed;
  } else if constexpr (C == Code::mxfp8) {
    const __m512i sign = _mm512_and_si512(packed, _mm512_set1_epi8(-128));
    const __m512i low = _mm512_permutex2var_epi8(tables.values[0], packed, tables.values[1]);
    const __m512i high =
        _mm512_or_si512(sign, _mm512_permutex2var_epi8(tables.values[2], packed, tables.values[3]));
    constexpr __mmask64 upper = 0xAAAAAAAAAAAAAAAA;
    plane[0] = _mm512_mask_mov_epi8(low, upper, _mm512_slli_epi16(high, 8));
    plane[1] = _mm512_mask_mov_epi8(_mm512_srli_epi16(low, 8), upper, high);
  } else if constexpr (C == Code::affine8) {
    unrolled<2>([&](int c) ZMLX_INLINED {
      const __m512i byte =
          _mm512_and_si512(shifted(packed, static_cast<unsigned>(8 * c)), _mm512_set1_epi16(255));
      const __m512i even =
          _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255))));
      const __m512i odd = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srli_epi32(byte, 16)));
      plane[c] = _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
    });
  } else {
    unrolled<planes_of(C)>([&](int c) ZMLX_INLINED {
      const __m512i index = shifted(packed, shift_of(C, c));
      plane[c] = C == Code::affine6
          ? _mm512_permutex2var_epi16(tables.values[0], index, tables.values[1])
          : _mm512_permutexvar_epi16(index, tables.values[0]);
    });
  }
}

/// Decodes a panel, 32 weight rows, to pairs of bf16 codes [word][plane][half][16 rows]: words
/// [begin, end) of `height` rows; begin is a multiple of 16, missing rows and words become zero.
template <Code C>
void fill_panel(
    const MatmulShape& s,
    const uint8_t* codes,
    int64_t height,
    Range words,
    std::byte* panel) {
  constexpr int count = planes_of(C);
  const Tables<C> tables;
  const int64_t row_bytes = s.row_bytes();
  for (int64_t word = words.begin; word < words.end; word += 16) {
    const int64_t at = word / 16 * vector_bytes(C);
    // The same piece of the next panel, in the order of addresses.
    for (int64_t line = 0; line < panel_outputs * vector_bytes(C); line += 64) {
      fetch(codes, panel_outputs * (row_bytes + at) + line);
    }
    for (int64_t half = 0; half < 2; ++half) {
      __m512i v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = half * 16 + i;
        v[i] = row < height ? load_codes<C>(tables, codes + row * row_bytes + at, row_bytes - at)
                            : _mm512_setzero_si512();
      }
      transpose(v);
      std::byte* to = panel + (word - words.begin) * count * 128 + half * 64;
      for (int i = 0; i < 16; ++i) {
        __m512i plane[count];
        planes<C>(tables, v[i], plane);
        for (int c = 0; c < count; ++c) {
          _mm512_store_si512(to, plane[c]);
          to += 128;
        }
      }
    }
  }
}

} // namespace
} // namespace zmlx::cpu
