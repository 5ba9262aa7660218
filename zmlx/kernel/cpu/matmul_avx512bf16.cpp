// zmlx/kernel/cpu/matmul_avx512bf16.cpp: bf16 matmul by AVX-512 bf16 dot products. Codes are exact
// in bf16, so nothing is rounded but the float32 sums.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX512BF16__)

// The header's own "undefined" vectors set these off when inlined.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace zmlx::cpu {
namespace {

// Bits of a dense weight's "code": the lane is the element, there are no groups.
constexpr int dense = 16;

/// Codes in a 16-bit lane, each from its own shift: planes of activations are stored in the same
/// order.
constexpr int planes_of(int bits) {
  return 16 / bits;
}

/// Bits of a code that the table resolves at once.
constexpr int index_bits(int bits) {
  return bits < 4 ? bits : 4;
}

int bits_of(const MatmulShape& s) {
  return s.format.bits ? s.format.bits : dense;
}

int64_t blocks_of(const MatmulShape& s) {
  const int64_t block = 32 * planes_of(bits_of(s));
  return (s.k + block - 1) / block;
}

/// bf16 elements of a prepared row before its group sums (float32). Block b, plane c, lane i holds
/// element (b * 32 + i) * planes + c.
int64_t row_elements(const MatmulShape& s) {
  return blocks_of(s) * 32 * planes_of(bits_of(s));
}

size_t prepared_bytes(const MatmulShape& s) {
  const int64_t sums = (s.groups() + 15) / 16 * 16;
  const int64_t bytes = row_elements(s) * 2 + sums * 4;
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

__m512 floats(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

__mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16{0xffff} : static_cast<__mmask16>((1u << std::max<int64_t>(n, 0)) - 1);
}

__m512 load_floats(const uint16_t* p, int64_t left) {
  return floats(_mm256_maskz_loadu_epi16(first_lanes(left), p));
}

template <int Planes>
void interleave(const uint16_t* x, int64_t k, uint16_t* to) {
  constexpr int64_t block = 32 * Planes;
  for (int64_t b = 0; b < k; b += block) {
    alignas(64) uint16_t part[block] = {};
    std::copy_n(x + b, std::min(block, k - b), part);
    for (int c = 0; c < Planes; ++c) {
      for (int i = 0; i < 32; ++i) {
        to[b + c * 32 + i] = part[i * Planes + c];
      }
    }
  }
}

void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  auto* from = static_cast<const uint16_t*>(x);
  auto* row = reinterpret_cast<uint16_t*>(to);
  switch (bits_of(s)) {
    case 2:
      interleave<8>(from, s.k, row);
      break;
    case 4:
      interleave<4>(from, s.k, row);
      break;
    case 8:
      interleave<2>(from, s.k, row);
      break;
    default:
      interleave<1>(from, s.k, row);
  }
  auto* sums = reinterpret_cast<float*>(row + row_elements(s));
  std::fill_n(sums, (s.groups() + 15) / 16 * 16, 0.0f);
  for (int64_t g = 0; g < s.groups(); ++g) {
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < s.format.group_size; i += 16) {
      total = _mm512_add_ps(total, load_floats(from + g * s.format.group_size + i, 16));
    }
    sums[g] = _mm512_reduce_add_ps(total);
  }
}

struct alignas(64) CodeTable {
  uint16_t values[32];
};

/// bf16 of the low `Bits` bits of a 5-bit index, times `factor`; vpermw reads no other bits, so
/// codes need no mask.
template <int Bits>
constexpr CodeTable make_codes(int factor) {
  CodeTable table{};
  for (int i = 0; i < 32; ++i) {
    const auto value = static_cast<float>((i & ((1 << Bits) - 1)) * factor);
    table.values[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }
  return table;
}

template <int Bits, int Factor = 1>
constexpr CodeTable code_values = make_codes<Bits>(Factor);

template <int Bits, int Factor = 1>
__m512i code_table() {
  return _mm512_load_si512(code_values<Bits, Factor>.values);
}

__m512bh bf16(__m512i v) {
  return std::bit_cast<__m512bh>(v);
}

/// The group that each lane of word vector `vector` lies in, in a run of 16 groups of 2^words_log2
/// words.
__m512i group_of_lane(int64_t vector, int words_log2) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i word = _mm512_add_epi32(lane, _mm512_set1_epi32(static_cast<int>(vector * 16)));
  return _mm512_srl_epi32(word, _mm_cvtsi32_si128(words_log2));
}

/// Codes of 16 words times the matching activations of M rows.
template <int Bits, int M>
[[gnu::always_inline]] inline void dot_words(
    __m512i packed,
    const uint16_t* const* x,
    int64_t at,
    __m512i low,
    __m512i high,
    __m512* part) {
  for (int m = 0; m < M; ++m) {
    part[m] = _mm512_setzero_ps();
  }
  if constexpr (Bits == dense) {
    for (int m = 0; m < M; ++m) {
      part[m] = _mm512_dpbf16_ps(part[m], bf16(packed), bf16(_mm512_load_si512(x[m] + at)));
    }
  } else {
    // An 8-bit code is two 4-bit ones, the upper times 16, that meet the same activation.
    constexpr int step = Bits == 8 ? 4 : Bits;
#pragma GCC unroll 8
    for (int shift = 0; shift < 16; shift += step) {
      const __m512i index =
          shift ? _mm512_srli_epi16(packed, static_cast<unsigned>(shift)) : packed;
      const bool upper = Bits == 8 && (shift & 4);
      const __m512bh codes = bf16(_mm512_permutexvar_epi16(index, upper ? high : low));
      for (int m = 0; m < M; ++m) {
        const __m512bh value = bf16(_mm512_load_si512(x[m] + at + shift / Bits * 32));
        part[m] = _mm512_dpbf16_ps(part[m], codes, value);
      }
    }
  }
}

// Bytes ahead that weights are fetched. Rows are read side by side, which hardware prefetchers do
// not recognise, so the same lines are asked for in the order of their addresses.
constexpr int64_t codes_ahead = 8192;
constexpr int64_t scales_ahead = 1024;

void fetch(const void* base, int64_t bytes) {
  // As a number: the address may lie past the end, where a prefetch does nothing.
  _mm_prefetch(
      reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(base) + bytes), _MM_HINT_T0);
}

/// R weight rows times M rows of activations, codes used as they are decoded.
template <int Bits, int R, int M>
void dot_few(
    const MatmulShape& s,
    const uint8_t* codes,
    const uint16_t* scales,
    const uint16_t* biases,
    const uint16_t* const* x,
    float* out,
    int64_t ld) {
  constexpr int planes = planes_of(Bits);
  const __m512i low = code_table<index_bits(Bits)>();
  const __m512i high = code_table<4, 16>();
  const int64_t row_bytes = s.row_bytes();
  const int64_t groups = s.groups();
  __m512 total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = _mm512_setzero_ps();
    }
  }
  if constexpr (Bits == dense) {
    for (int64_t k = 0; k < s.k; k += 32) {
      const int64_t left = s.k - k;
      const auto mask =
          left >= 32 ? __mmask32{0xffffffff} : static_cast<__mmask32>((1u << left) - 1);
      for (int r = 0; r < R; ++r) {
        fetch(codes, codes_ahead + k * 2 * R + r * 64);
        const __m512i row = _mm512_maskz_loadu_epi16(mask, codes + r * row_bytes + k * 2);
        for (int m = 0; m < M; ++m) {
          const __m512bh value = bf16(_mm512_load_si512(x[m] + k));
          total[r][m] = _mm512_dpbf16_ps(total[r][m], bf16(row), value);
        }
      }
    }
  } else {
    const int64_t words = row_bytes / 4;
    const int64_t group_words = s.format.group_size * Bits / 32;
    const int words_log2 = std::countr_zero(static_cast<uint64_t>(group_words));
    const int64_t sums = row_elements(s);
    for (int64_t g = 0; g < groups; g += 16) {
      __m512 scale[R];
      for (int64_t line = 0; line < R * 32; line += 64) {
        fetch(scales, scales_ahead + g * 2 * R + line);
        fetch(biases, scales_ahead + g * 2 * R + line);
      }
      for (int r = 0; r < R; ++r) {
        scale[r] = load_floats(scales + r * groups + g, groups - g);
        const __m512 bias = load_floats(biases + r * groups + g, groups - g);
        for (int m = 0; m < M; ++m) {
          const __m512 sum = _mm512_load_ps(reinterpret_cast<const float*>(x[m] + sums) + g);
          total[r][m] = _mm512_fmadd_ps(bias, sum, total[r][m]);
        }
      }
      const int64_t first = g * group_words;
      const int64_t last = std::min(words, first + 16 * group_words);
      for (int64_t word = first; word < last; word += 16) {
        const __m512i lane_group = group_of_lane((word - first) / 16, words_log2);
        const __mmask16 mask = first_lanes(last - word);
        for (int r = 0; r < R; ++r) {
          fetch(codes, codes_ahead + word * 4 * R + r * 64);
          const __m512i packed = _mm512_maskz_loadu_epi32(mask, codes + r * row_bytes + word * 4);
          __m512 part[M];
          dot_words<Bits, M>(packed, x, word * 2 * planes, low, high, part);
          const __m512 lane_scale = _mm512_permutexvar_ps(lane_group, scale[r]);
          for (int m = 0; m < M; ++m) {
            total[r][m] = _mm512_fmadd_ps(part[m], lane_scale, total[r][m]);
          }
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      out[m * ld + r] = _mm512_reduce_add_ps(total[r][m]);
    }
  }
}

const uint16_t* row_of(const Rows& rows, size_t row_bytes, int64_t i) {
  const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
  return reinterpret_cast<const uint16_t*>(rows.prepared + at * row_bytes);
}

template <int Bits, int R, int M>
void run_few(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  const uint16_t* x[M];
  for (int m = 0; m < M; ++m) {
    x[m] = row_of(rows, row_bytes, m);
  }
  for (int64_t j = outputs.begin; j < outputs.end;) {
    auto codes = static_cast<const uint8_t*>(w.codes) + j * s.row_bytes();
    auto scales = static_cast<const uint16_t*>(w.scales) + j * s.groups();
    auto biases = static_cast<const uint16_t*>(w.biases) + j * s.groups();
    float* to = out + j - outputs.begin;
    if (outputs.end - j >= R) {
      dot_few<Bits, R, M>(s, codes, scales, biases, x, to, ld);
      j += R;
    } else {
      dot_few<Bits, 1, M>(s, codes, scales, biases, x, to, ld);
      j += 1;
    }
  }
}

// A panel is 32 weight rows decoded for up to panel_words words: [word][plane][half][16 rows] pairs
// of bf16 codes.
constexpr int64_t panel_outputs = 32;
constexpr int64_t panel_bytes = 65536;

constexpr int64_t panel_words(int bits) {
  return panel_bytes / (panel_outputs * 4 * planes_of(bits));
}

/// Turns 16 rows of 16 words into 16 columns.
void transpose(__m512i* v) {
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

/// bf16 of plane c of 16-bit lanes.
template <int Bits>
__m512i plane(__m512i words, int c, __m512i table) {
  if constexpr (Bits == dense) {
    return words;
  } else if constexpr (Bits == 8) {
    const __m512i bytes = _mm512_and_si512(
        _mm512_srli_epi16(words, static_cast<unsigned>(8 * c)), _mm512_set1_epi16(255));
    const __m512i even =
        _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_and_si512(bytes, _mm512_set1_epi32(255))));
    const __m512i odd = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srli_epi32(bytes, 16)));
    return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
  } else {
    return _mm512_permutexvar_epi16(
        _mm512_srli_epi16(words, static_cast<unsigned>(Bits * c)), table);
  }
}

/// Decodes words [begin, end) of `height` rows; begin is a multiple of 16, missing rows and words
/// become zero.
template <int Bits>
void fill_panel(
    const MatmulShape& s,
    const uint8_t* codes,
    int64_t height,
    Range words,
    std::byte* panel) {
  constexpr int planes = planes_of(Bits);
  const __m512i table = code_table<index_bits(Bits)>();
  const int64_t row_bytes = s.row_bytes();
  for (int64_t word = words.begin; word < words.end; word += 16) {
    const int64_t left = row_bytes / 2 - word * 2;
    const auto mask = left >= 32 ? __mmask32{0xffffffff} : static_cast<__mmask32>((1u << left) - 1);
    for (int64_t half = 0; half < 2; ++half) {
      __m512i v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = half * 16 + i;
        v[i] = row < height ? _mm512_maskz_loadu_epi16(mask, codes + row * row_bytes + word * 4)
                            : _mm512_setzero_si512();
      }
      transpose(v);
      std::byte* to = panel + (word - words.begin) * planes * 128 + half * 64;
      for (int i = 0; i < 16; ++i) {
        for (int c = 0; c < planes; ++c) {
          _mm512_store_si512(to, plane<Bits>(v[i], c, table));
          to += 128;
        }
      }
    }
  }
}

/// Scales or biases of groups [begin, end) of `height` rows, transposed to floats [group][32].
void fill_scales(const uint16_t* from, int64_t stride, int64_t height, Range groups, float* to) {
  for (int64_t g = groups.begin; g < groups.end; g += 16) {
    const int64_t count = std::min<int64_t>(16, groups.end - g);
    for (int64_t half = 0; half < 2; ++half) {
      __m512i v[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t row = half * 16 + i;
        v[i] = row < height ? _mm512_castps_si512(load_floats(from + row * stride + g, count))
                            : _mm512_setzero_si512();
      }
      transpose(v);
      for (int64_t i = 0; i < count; ++i) {
        _mm512_store_si512(to + (g - groups.begin + i) * panel_outputs + half * 16, v[i]);
      }
    }
  }
}

struct Panel {
  const std::byte* codes;
  const float* scales; // none when dense
  const float* biases;
  Range words;
  int64_t group_words; // words.end - words.begin when dense
  int64_t first_group;
  int64_t sums; // where a prepared row's group sums begin, in elements
};

/// M rows of activations times a panel, added to out (or stored, by the first panel).
template <int Bits, int M>
void multiply(
    const Panel& p,
    const uint16_t* const* x,
    bool first,
    __mmask16 keep0,
    __mmask16 keep1,
    float* out,
    int64_t ld) {
  constexpr int planes = planes_of(Bits);
  const std::byte* codes = p.codes;
  int64_t group = 0;
  for (int64_t begin = p.words.begin; begin < p.words.end; begin += p.group_words, ++group) {
    __m512 part[M][2];
    for (int m = 0; m < M; ++m) {
      part[m][0] = part[m][1] = _mm512_setzero_ps();
    }
    const int64_t end = std::min(begin + p.group_words, p.words.end);
    for (int64_t word = begin; word < end; ++word) {
      const int64_t at = word / 16 * 32 * planes + word % 16 * 2;
#pragma GCC unroll 8
      for (int c = 0; c < planes; ++c) {
        const __m512bh w0 = bf16(_mm512_load_si512(codes));
        const __m512bh w1 = bf16(_mm512_load_si512(codes + 64));
        codes += 128;
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          int pair;
          std::memcpy(&pair, x[m] + at + c * 32, 4);
          const __m512bh value = bf16(_mm512_set1_epi32(pair));
          part[m][0] = _mm512_dpbf16_ps(part[m][0], w0, value);
          part[m][1] = _mm512_dpbf16_ps(part[m][1], w1, value);
        }
      }
    }
    const bool fresh = first && group == 0;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      float* to = out + m * ld;
      __m512 t0 = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(keep0, to);
      __m512 t1 = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(keep1, to + 16);
      if constexpr (Bits == dense) {
        t0 = _mm512_add_ps(t0, part[m][0]);
        t1 = _mm512_add_ps(t1, part[m][1]);
      } else {
        const float* scales = p.scales + group * panel_outputs;
        const float* biases = p.biases + group * panel_outputs;
        const float* sums = reinterpret_cast<const float*>(x[m] + p.sums);
        const __m512 sum = _mm512_set1_ps(sums[p.first_group + group]);
        t0 = _mm512_fmadd_ps(part[m][0], _mm512_load_ps(scales), t0);
        t1 = _mm512_fmadd_ps(part[m][1], _mm512_load_ps(scales + 16), t1);
        t0 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases), t0);
        t1 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases + 16), t1);
      }
      _mm512_mask_storeu_ps(to, keep0, t0);
      _mm512_mask_storeu_ps(to + 16, keep1, t1);
    }
  }
}

constexpr int tall = 12; // rows of one multiply: 24 accumulators

template <int Bits, int M>
void multiply_up_to(
    int64_t count,
    const Panel& p,
    const uint16_t* const* x,
    bool first,
    __mmask16 keep0,
    __mmask16 keep1,
    float* out,
    int64_t ld) {
  if (count == M) {
    multiply<Bits, M>(p, x, first, keep0, keep1, out, ld);
  } else if constexpr (M > 1) {
    multiply_up_to<Bits, M - 1>(count, p, x, first, keep0, keep1, out, ld);
  }
}

template <int Bits>
void run_panels(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  alignas(64) std::byte codes[panel_bytes];
  alignas(64) float scales[panel_words(Bits) / 2 * panel_outputs];
  alignas(64) float biases[panel_words(Bits) / 2 * panel_outputs];
  const int64_t words = (s.row_bytes() + 3) / 4;
  const int64_t group_words = s.format.bits ? s.format.group_size * Bits / 32 : 0;
  for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
    const int64_t height = std::min(panel_outputs, outputs.end - j);
    for (int64_t begin = 0; begin < words; begin += panel_words(Bits)) {
      const Range part{begin, std::min(begin + panel_words(Bits), words)};
      auto* from = static_cast<const uint8_t*>(w.codes) + j * s.row_bytes();
      fill_panel<Bits>(s, from, height, part, codes);
      Panel panel{codes, scales, biases, part, part.end - part.begin, 0, row_elements(s)};
      if (s.format.bits) {
        const Range groups{part.begin / group_words, part.end / group_words};
        auto* row_scales = static_cast<const uint16_t*>(w.scales) + j * s.groups();
        auto* row_biases = static_cast<const uint16_t*>(w.biases) + j * s.groups();
        fill_scales(row_scales, s.groups(), height, groups, scales);
        fill_scales(row_biases, s.groups(), height, groups, biases);
        panel.group_words = group_words;
        panel.first_group = groups.begin;
      }
      const __mmask16 keep0 = first_lanes(height);
      const __mmask16 keep1 = first_lanes(height - 16);
      for (int64_t i = 0; i < rows.count;) {
        // The last rows in equal parts: 13 as 7 and 6, not 12 and 1.
        const int64_t left = rows.count - i;
        const int64_t parts = (left + tall - 1) / tall;
        const int64_t count = (left + parts - 1) / parts;
        const uint16_t* x[tall];
        for (int64_t m = 0; m < count; ++m) {
          x[m] = row_of(rows, row_bytes, i + m);
        }
        float* to = out + i * ld + j - outputs.begin;
        multiply_up_to<Bits, tall>(count, panel, x, begin == 0, keep0, keep1, to, ld);
        i += count;
      }
    }
  }
}

template <int Bits>
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
      return run_few<Bits, 4, 1>(s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<Bits, 4, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<Bits, 2, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<Bits, 2, 4>(s, w, outputs, rows, row_bytes, out, ld);
    case 5:
      return run_few<Bits, 2, 5>(s, w, outputs, rows, row_bytes, out, ld);
    case 6:
      return run_few<Bits, 2, 6>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return run_panels<Bits>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  switch (s.format.bits) {
    case 2:
      return run_as<2>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_as<4>(s, w, outputs, rows, row_bytes, out, ld);
    case 8:
      return run_as<8>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return run_as<dense>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

} // namespace

const MatmulKernels* bf16_matmul() {
  static const bool here = __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq");
  static const MatmulKernels kernels{"AVX512_BF16", prepared_bytes, prepare, run};
  return here ? &kernels : nullptr;
}

bool bf16_matmul_supports(const MatmulShape& s) {
  const int bits = s.format.bits;
  return s.dtype == Dtype::bf16 && (bits == 0 || bits == 2 || bits == 4 || bits == 8);
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* bf16_matmul() {
  return nullptr;
}

bool bf16_matmul_supports(const MatmulShape&) {
  return false;
}

} // namespace zmlx::cpu

#endif
