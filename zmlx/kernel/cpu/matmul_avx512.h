// zmlx/kernel/cpu/matmul_avx512.h: what the matmuls of AVX-512 share: masks, scales, codes that
// cross bytes, panels. Included with the flags of the instruction set alone.
#pragma once

// The header's own "undefined" vectors set these off when inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/kernel/cpu/minifloat.h"

namespace zmlx::cpu {
// Each file that includes this has flags, so copies, of its own.
namespace {

inline __m512 floats(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << std::max<int64_t>(n, 0)) - 1);
}

inline __mmask64 first_bytes(int64_t n) {
  return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << std::max<int64_t>(n, 0)) - 1;
}

/// Scales or biases of 16 groups, zero past the last.
template <Code C>
__m512 load_scales(const std::byte* p, int64_t left) {
  const __mmask16 mask = first_lanes(left);
  if constexpr (is_affine(C)) {
    return floats(_mm256_maskz_loadu_epi16(mask, p));
  } else if constexpr (C == Code::nvfp4) {
    // e4m3 is float16 with two bits less at both ends, so 2^8 times as large.
    const __m256i code = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(mask, p));
    const __m256i size = _mm256_and_si256(code, _mm256_set1_epi16(127));
    const __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(code, 7), 15);
    const __m256i half = _mm256_or_si256(_mm256_slli_epi16(size, 7), sign);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(size, _mm256_set1_epi16(127));
    const __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256));
    return _mm512_mask_mov_ps(value, nan, _mm512_set1_ps(from_e4m3(127)));
  } else {
    const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, p));
    const __m512i bits = _mm512_slli_epi32(code, 23);
    return _mm512_castsi512_ps(_mm512_max_epu32(bits, _mm512_set1_epi32(0x00400000)));
  }
}

struct alignas(64) Bytes {
  uint8_t values[64];
};

inline __m512i bytes(const Bytes& table) {
  return _mm512_load_si512(table.values);
}

/// Whether codes cross bytes.
constexpr bool is_spread(Code code) {
  return code == Code::affine3 || code == Code::affine5 || code == Code::affine6;
}

/// Spreads codes out, `Bits` of them to a byte. Byte j of quarter-word q: its codes fill `Bits`
/// bytes, moved to its start.
template <int Bits>
constexpr Bytes make_spread() {
  Bytes table{};
  for (int i = 0; i < 64; ++i) {
    const int at = i / 8 * Bits + i % 8;
    table.values[i] = static_cast<uint8_t>(std::min(at, 63));
  }
  return table;
}
/// The bit of its 64 at which each byte of a spread vector begins.
template <int Bits>
constexpr Bytes make_bit() {
  Bytes table{};
  for (int i = 0; i < 64; ++i) {
    table.values[i] = static_cast<uint8_t>(i % 8 * Bits);
  }
  return table;
}
template <int Bits>
constexpr Bytes spread_of = make_spread<Bits>();
template <int Bits>
constexpr Bytes bit_of = make_bit<Bits>();

// For lambdas, which know no standard attribute in that place.
#define ZMLX_INLINED __attribute__((always_inline))

/// f(0), f(1), ... f(N - 1) one after the other: what they index stays in registers.
template <int N, typename F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) ZMLX_INLINED {
    (f(I), ...);
  }
  (std::make_integer_sequence<int, N>());
}

/// The group that each lane of word vector `vector` lies in, in a run of 16 groups of 2^words_log2
/// words.
inline __m512i group_of_lane(int64_t vector, int words_log2) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i word = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(vector * 16)));
  return _mm512_srl_epi32(word, _mm_cvtsi32_si128(words_log2));
}

// Bytes ahead that weights are fetched. Rows are read side by side, which hardware prefetchers do
// not recognise, so the same lines are asked for in the order of their addresses: first into the
// second cache, which waits for more lines at once than the first can, then into the first.
constexpr int64_t codes_far = 16384;
constexpr int64_t codes_near = 1024;
constexpr int64_t scales_ahead = 1024;

// As a number: the address may lie past the end, where a prefetch does nothing.
inline const char* address(const void* base, int64_t bytes) {
  return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(base) + bytes);
}

inline void fetch(const void* base, int64_t bytes) {
  _mm_prefetch(address(base, bytes), _MM_HINT_T0);
}

/// The line of codes that is read `bytes` after base.
inline void fetch_codes(const void* base, int64_t bytes) {
  _mm_prefetch(address(base, bytes + codes_far), _MM_HINT_T1);
  _mm_prefetch(address(base, bytes + codes_near), _MM_HINT_T0);
}

constexpr int64_t panel_outputs = 32; // weight rows decoded together

/// Turns 16 rows of 16 words into 16 columns.
inline void transpose(__m512i* v) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // v[4 q + c] now holds, in quarter h, column 4 h + c of rows 4 q .. 4 q + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i a = _mm512_shuffle_i32x4(v[c], v[4 + c], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0x88);
    const __m512i d = _mm512_shuffle_i32x4(v[c], v[4 + c], 0xdd);
    const __m512i e = _mm512_shuffle_i32x4(v[8 + c], v[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
  }
  std::copy_n(t, 16, v);
}

/// Scales or biases of groups [begin, end) of `height` rows, `size` bytes each, transposed to
/// floats [group][32]; load(p, count) gives up to 16 of them.
template <typename Load>
void fill_scales(
    const std::byte* from,
    int64_t size,
    int64_t stride,
    int64_t height,
    Range groups,
    float* to,
    Load load) {
  for (int64_t g = groups.begin; g < groups.end; g += 16) {
    const int64_t count = std::min<int64_t>(16, groups.end - g);
    for (int64_t half = 0; half < 2; ++half) {
      __m512i v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = half * 16 + i;
        v[i] = row < height ? _mm512_castps_si512(load(from + (row * stride + g) * size, count))
                            : _mm512_setzero_si512();
      }
      transpose(v);
      for (int64_t i = 0; i < count; ++i) {
        _mm512_store_si512(to + (g - groups.begin + i) * panel_outputs + half * 16, v[i]);
      }
    }
  }
}

} // namespace
} // namespace zmlx::cpu
