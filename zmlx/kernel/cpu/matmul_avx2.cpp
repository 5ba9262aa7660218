// zmlx/kernel/cpu/matmul_avx2.cpp: bf16 and f16 matmul by AVX2's products of 16-bit integers. Codes
// are exact; activations become integers that share a power of two in each group, or integers of 8
// bits.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <utility>

#include "zmlx/kernel/cpu/int16.h"
#include "zmlx/kernel/cpu/int8.h"
#include "zmlx/kernel/cpu/minifloat.h"

namespace zmlx::cpu {
namespace {

/// Codes in a 16-bit lane, each from its own shift: planes of activations are stored in the same
/// order.
constexpr int planes_of(Code code) {
  switch (code) {
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

/// Bits of codes in a lane; where they are less than 16, codes cross bytes and vectors are spread
/// out.
constexpr int lane_bits(Code code) {
  return planes_of(code) * bits_of(code);
}

/// Bytes of a weight row that fill 16 lanes.
constexpr int64_t vector_bytes(Code code) {
  return 2 * lane_bits(code);
}

/// Elements in 16 lanes.
constexpr int64_t block_of(Code code) {
  return 16 * planes_of(code);
}

/// Elements in 32 bits, of which one product makes a sum.
constexpr int64_t word_codes(Code code) {
  return 2 * planes_of(code);
}

int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

/// 16-bit integers of a prepared row before its scales. Block b, plane c, lane i holds element (b *
/// 16 + i) * planes + c.
template <Code C>
int64_t row_elements(const MatmulShape& s) {
  return round_up(s.k, block_of(C));
}

/// Floats of the scales, and of the sums that biases need.
int64_t row_scales(const MatmulShape& s) {
  return round_up(s.groups(), 8);
}

template <Code C>
size_t prepared_bytes_as(const MatmulShape& s) {
  const int64_t floats = row_scales(s) * (is_affine(C) ? 2 : 1);
  const int64_t bytes = round_up(row_elements<C>(s) * 2 + floats * 4, 64);
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

/// Where a prepared row's parts begin.
template <Code C>
struct Row {
  const int16_t* values;
  const float* scales;
  const float* sums;

  Row(const MatmulShape& s, const Rows& rows, size_t row_bytes, int64_t i) {
    const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
    values = reinterpret_cast<const int16_t*>(rows.prepared + at * row_bytes);
    scales = reinterpret_cast<const float*>(values + row_elements<C>(s));
    sums = scales + row_scales(s);
  }
  Row() = default;
};

__m256 floats(__m128i half) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

__m256 to_floats(Dtype dtype, __m128i half) {
  return dtype == Dtype::f16 ? _mm256_cvtph_ps(half) : floats(half);
}

__m128i load_128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}

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

__m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

float sum_of(__m256 v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

struct alignas(32) Bytes {
  uint8_t values[32];
};
struct alignas(32) Lanes {
  uint16_t values[16];
};

template <typename T>
__m256i table(const T& t) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(t.values));
}

/// Brings the even 16-bit lanes of each half of a vector before its odd ones.
constexpr Bytes make_apart() {
  Bytes table{};
  for (int i = 0; i < 32; ++i) {
    table.values[i] = static_cast<uint8_t>(i / 2 % 4 * 4 + i % 16 / 8 * 2 + i % 2);
  }
  return table;
}
constexpr Bytes apart = make_apart();

/// The even 16-bit lanes of two vectors, and the odd ones.
void part_lanes(__m256i a, __m256i b, __m256i& even, __m256i& odd) {
  a = _mm256_shuffle_epi8(a, table(apart));
  b = _mm256_shuffle_epi8(b, table(apart));
  even = _mm256_permute4x64_epi64(_mm256_unpacklo_epi64(a, b), 0xD8);
  odd = _mm256_permute4x64_epi64(_mm256_unpackhi_epi64(a, b), 0xD8);
}

/// Turns `Planes` vectors of consecutive elements into planes: plane c has elements c, c + Planes,
/// and so on.
template <int Planes>
[[gnu::always_inline]] inline void to_planes(__m256i* v) {
  if constexpr (Planes > 1) {
    constexpr int half = Planes / 2;
    __m256i even[half];
    __m256i odd[half];
    for (int i = 0; i < half; ++i) {
      part_lanes(v[2 * i], v[2 * i + 1], even[i], odd[i]);
    }
    to_planes<half>(even);
    to_planes<half>(odd);
    for (int i = 0; i < half; ++i) {
      v[2 * i] = even[i];
      v[2 * i + 1] = odd[i];
    }
  }
}

/// Writes `count` elements as integers and returns their scale; `count` is a multiple of 16.
template <Activations A>
float to_integers(Dtype dtype, const uint16_t* from, int64_t count, int16_t* to, float& sum) {
  __m256i most = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 16) {
    const __m256i size = _mm256_and_si256(load_256(from + i), _mm256_set1_epi16(0x7FFF));
    most = _mm256_max_epi16(most, size);
  }
  // The instruction finds the least, so of what is left to the largest.
  const __m128i least = _mm_sub_epi16(
      _mm_set1_epi16(0x7FFF),
      _mm_max_epi16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1)));
  const __m128i largest = _mm_sub_epi16(_mm_set1_epi16(0x7FFF), _mm_minpos_epu16(least));
  const float magnitude = _mm256_cvtss_f32(to_floats(dtype, largest));
  float factor;
  float scale;
  if constexpr (A == Activations::int8) {
    const auto chosen = int8_scale(magnitude);
    factor = chosen.inverse;
    scale = chosen.scale;
  } else {
    const auto chosen = int16_scale(magnitude);
    factor = chosen.inverse;
    scale = chosen.scale;
  }
  const __m256 inverse = _mm256_set1_ps(factor);
  __m256i total = _mm256_setzero_si256();
  for (int64_t i = 0; i < count; i += 16) {
    const __m256 low = to_floats(dtype, load_128(from + i));
    const __m256 high = to_floats(dtype, load_128(from + i + 8));
    const __m256i whole = _mm256_permute4x64_epi64(
        _mm256_packs_epi32(
            _mm256_cvtps_epi32(_mm256_mul_ps(low, inverse)),
            _mm256_cvtps_epi32(_mm256_mul_ps(high, inverse))),
        0xD8);
    total = _mm256_add_epi32(total, _mm256_madd_epi16(whole, _mm256_set1_epi16(1)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), whole);
  }
  sum = sum_of(_mm256_cvtepi32_ps(total)) * scale;
  return scale;
}

template <Activations A, Code C>
void prepare_as(const MatmulShape& s, const void* x, std::byte* to) {
  constexpr int count = planes_of(C);
  auto* from = static_cast<const uint16_t*>(x);
  auto* row = reinterpret_cast<int16_t*>(to);
  auto* scales = reinterpret_cast<float*>(row + row_elements<C>(s));
  float* sums = scales + row_scales(s);
  std::fill_n(row + s.k, row_elements<C>(s) - s.k, int16_t{0});
  std::fill_n(scales, row_scales(s) * (is_affine(C) ? 2 : 1), 0.0f);
  for (int64_t g = 0; g < s.groups(); ++g) {
    const int64_t begin = g * s.format.group_size;
    float sum = 0;
    const float scale =
        to_integers<A>(s.dtype, from + begin, s.format.group_size, row + begin, sum);
    // Twice their value is an integer for the elements of fp4.
    scales[g] = is_affine(C) ? scale : scale * 0.5f;
    if constexpr (is_affine(C)) {
      sums[g] = sum;
    }
  }
  for (int64_t b = 0; b < row_elements<C>(s); b += block_of(C)) {
    __m256i v[count];
    unrolled<count>([&](int c) ZMLX_INLINED { v[c] = load_256(row + b + 16 * c); });
    to_planes<count>(v);
    unrolled<count>([&](int c) ZMLX_INLINED {
      _mm256_store_si256(reinterpret_cast<__m256i*>(row + b + 16 * c), v[c]);
    });
  }
}

/// Places of a shuffle, read from byte n on: a vector without its first n bytes, then zeros.
constexpr Bytes make_moved_down() {
  Bytes table{};
  for (int i = 0; i < 32; ++i) {
    table.values[i] = static_cast<uint8_t>(i < 16 ? i : 128);
  }
  return table;
}
constexpr Bytes moved_down = make_moved_down();

/// Scales or biases of 8 groups from `group` on, of which a row has `left`; zero past them.
template <Code C>
[[gnu::always_inline]] inline __m256
load_scales(Dtype dtype, const std::byte* row, int64_t group, int64_t left) {
  constexpr int64_t size = is_affine(C) ? 2 : 1;
  const std::byte* p = row + group * size;
  __m128i raw;
  if (left >= 8) [[likely]] {
    raw = size == 2 ? load_128(p) : _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  } else if (group && size == 2) {
    // The last eight of the row, moved down.
    raw = _mm_shuffle_epi8(
        load_128(p - (8 - left) * size), load_128(moved_down.values + (8 - left) * size));
  } else {
    alignas(16) std::byte part[16] = {};
    std::copy_n(p, left * size, part);
    raw = load_128(part);
  }
  if constexpr (is_affine(C)) {
    return to_floats(dtype, raw);
  } else if constexpr (C == Code::nvfp4) {
    // e4m3 is float16 with two bits less at both ends, so 2^8 times as large.
    const __m128i code = _mm_cvtepu8_epi16(raw);
    const __m128i magnitude = _mm_and_si128(code, _mm_set1_epi16(127));
    const __m128i sign = _mm_slli_epi16(_mm_srli_epi16(code, 7), 15);
    const __m128i half = _mm_or_si128(_mm_slli_epi16(magnitude, 7), sign);
    const __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(127));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(half, nan)), _mm256_set1_ps(256));
  } else {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(raw), 23);
    return _mm256_castsi256_ps(_mm256_max_epu32(bits, _mm256_set1_epi32(0x00400000)));
  }
}

/// The two bytes that hold each lane's codes, for both halves of a vector.
constexpr Bytes make_spread(int bits) {
  Bytes table{};
  for (int i = 0; i < 16; ++i) {
    table.values[2 * i] = static_cast<uint8_t>(i % 8 * bits / 8);
    table.values[2 * i + 1] = static_cast<uint8_t>(i % 8 * bits / 8 + 1);
  }
  return table;
}
/// Factors that move each lane's codes to its upper end.
constexpr Lanes make_factors(int bits) {
  Lanes table{};
  for (int i = 0; i < 16; ++i) {
    table.values[i] = static_cast<uint16_t>(1 << (16 - bits - i * bits % 8));
  }
  return table;
}
template <int Bits>
constexpr Bytes spread_of = make_spread(Bits);
template <int Bits>
constexpr Lanes factors_of = make_factors(Bits);

/// Twice the value of e2m1 codes.
constexpr Bytes make_doubled() {
  Bytes table{};
  for (uint32_t i = 0; i < 32; ++i) {
    table.values[i] = static_cast<uint8_t>(static_cast<int>(2 * from_e2m1(i % 16)));
  }
  return table;
}
constexpr Bytes doubled_e2m1 = make_doubled();

/// 16 lanes of codes. Reads 32 bytes.
template <Code C>
[[gnu::always_inline]] inline __m256i load_codes(const uint8_t* p) {
  if constexpr (lane_bits(C) == 16) {
    return load_256(p);
  } else {
    const __m256i both =
        _mm256_inserti128_si256(_mm256_castsi128_si256(load_128(p)), load_128(p + lane_bits(C)), 1);
    const __m256i lanes = _mm256_shuffle_epi8(both, table(spread_of<lane_bits(C)>));
    return _mm256_mullo_epi16(lanes, table(factors_of<lane_bits(C)>));
  }
}

/// The same where a row has no more than `left` bytes; what lies past its end meets zeros.
template <Code C>
__m256i load_last(const uint8_t* p, int64_t left) {
  alignas(32) uint8_t part[32] = {};
  std::copy_n(p, std::clamp<int64_t>(left, 0, 32), part);
  return load_codes<C>(part);
}

/// 16-bit integers of the planes of 16 lanes.
template <Code C>
[[gnu::always_inline]] inline void planes(__m256i packed, __m256i* plane) {
  if constexpr (is_affine(C)) {
    constexpr int bits = bits_of(C);
    unrolled<planes_of(C)>([&](int c) ZMLX_INLINED {
      const int shift = 16 - lane_bits(C) + c * bits;
      const __m256i moved = shift ? _mm256_srli_epi16(packed, shift) : packed;
      const bool is_last = c + 1 == planes_of(C);
      plane[c] = is_last ? moved : _mm256_and_si256(moved, _mm256_set1_epi16((1 << bits) - 1));
    });
  } else {
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i values = table(doubled_e2m1);
    unrolled<2>([&](int c) ZMLX_INLINED {
      const __m256i code = _mm256_and_si256(_mm256_srli_epi16(packed, 4 * c), nibble);
      const __m256i bytes = _mm256_shuffle_epi8(values, code);
      plane[c] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
      plane[2 + c] = _mm256_srai_epi16(bytes, 8);
    });
  }
}

// Bytes ahead that weights are fetched. Rows are read side by side, which hardware prefetchers do
// not recognise, so the same lines are asked for in the order of their addresses.
constexpr int64_t codes_ahead = 4096;
constexpr int64_t scales_ahead = 1024;

[[gnu::always_inline]] inline void fetch(const void* base, int64_t bytes) {
  // As a number: the address may lie past the end, where a prefetch does nothing.
  _mm_prefetch(
      reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(base) + bytes), _MM_HINT_T0);
}

/// total += a * b, by pairs. As one piece: left to itself, GCC multiplies first, adds last and runs
/// out of registers in between.
[[gnu::always_inline]] inline void add_products(__m256i& total, __m256i a, __m256i b) {
  __m256i products;
  asm("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(total), "=&x"(products) : "xm"(b), "x"(a));
}

/// Whether a whole vector of a format's codes may lie in one group, and whether it may not.
constexpr bool may_be_wide(Code code) {
  return is_affine(code);
}
constexpr bool may_be_narrow(Code code) {
  return word_codes(code) * 8 > 32;
}

/// R weight rows, from row `j` on, times M rows of activations, codes used as they are decoded.
/// Wide: every vector of codes lies in one group.
template <Code C, bool Wide, int R, int M>
void dot_few(
    const MatmulShape& s,
    const Weight& w,
    int64_t j,
    const Row<C>* x,
    float* out,
    int64_t ld) {
  constexpr int64_t size = is_affine(C) ? 2 : 1; // of a scale
  const int64_t row_bytes = s.row_bytes();
  const int64_t groups = s.groups();
  auto* codes = static_cast<const uint8_t*>(w.codes) + j * row_bytes;
  auto* scales = static_cast<const std::byte*>(w.scales) + j * groups * size;
  auto* biases = static_cast<const std::byte*>(w.biases) + (is_affine(C) ? j * groups * size : 0);
  const int64_t vectors = (s.k + block_of(C) - 1) / block_of(C);
  // Vectors with 32 bytes to read.
  const int64_t whole = (row_bytes - 32 + vector_bytes(C)) / vector_bytes(C);
  const int64_t group_words = s.format.group_size / word_codes(C);
  __m256 total[R][M];
  unrolled<R * M>([&](int i) ZMLX_INLINED { total[i / M][i % M] = _mm256_setzero_ps(); });
  alignas(32) float scale[R][M][8];

  const auto add = [&](int64_t vector, auto&& load, auto&& lane_scale) ZMLX_INLINED {
    unrolled<R>([&](int r) ZMLX_INLINED {
      const __m256i packed = load(codes + r * row_bytes + vector * vector_bytes(C));
      __m256i plane[planes_of(C)];
      planes<C>(packed, plane);
      unrolled<M>([&](int m) ZMLX_INLINED {
        const int16_t* values = x[m].values + vector * block_of(C);
        __m256i part = _mm256_madd_epi16(plane[0], load_256(values));
        unrolled<planes_of(C) - 1>([&](int c) ZMLX_INLINED {
          add_products(part, plane[c + 1], load_256(values + (c + 1) * 16));
        });
        total[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), lane_scale(r, m), total[r][m]);
      });
    });
  };
  const auto add_vector = [&](int64_t vector, auto&& lane_scale) ZMLX_INLINED {
    if (vector < whole) [[likely]] {
      for (int64_t line = 0; line < R * vector_bytes(C); line += 64) {
        fetch(codes, codes_ahead + vector * R * vector_bytes(C) + line);
      }
      add(vector, load_codes<C>, lane_scale);
    } else {
      const int64_t left = row_bytes - vector * vector_bytes(C);
      add(
          vector, [&](const uint8_t* p) { return load_last<C>(p, left); }, lane_scale);
    }
  };

  for (int64_t g = 0; g < groups; g += 8) {
    for (int64_t line = 0; line < R * 8 * size; line += 64) {
      fetch(scales, scales_ahead + g * size * R + line);
      if constexpr (is_affine(C)) {
        fetch(biases, scales_ahead + g * size * R + line);
      }
    }
    unrolled<R>([&](int r) ZMLX_INLINED {
      const int64_t at = r * groups * size;
      const __m256 mine = load_scales<C>(s.dtype, scales + at, g, groups - g);
      __m256 bias = _mm256_setzero_ps();
      if constexpr (is_affine(C)) {
        bias = load_scales<C>(s.dtype, biases + at, g, groups - g);
      }
      unrolled<M>([&](int m) ZMLX_INLINED {
        _mm256_store_ps(scale[r][m], _mm256_mul_ps(mine, _mm256_loadu_ps(x[m].scales + g)));
        if constexpr (is_affine(C)) {
          total[r][m] = _mm256_fmadd_ps(bias, _mm256_loadu_ps(x[m].sums + g), total[r][m]);
        }
      });
    });
    if constexpr (Wide) {
      const int64_t step = group_words / 8;
      int64_t vector = g * step;
      for (int64_t i = 0; i < std::min<int64_t>(8, groups - g); ++i) {
        for (const int64_t end = vector + step; vector < end; ++vector) {
          add_vector(vector, [&](int r, int m) ZMLX_INLINED {
            return _mm256_broadcast_ss(&scale[r][m][i]);
          });
        }
      }
    } else {
      const int words_log2 = std::countr_zero(static_cast<uint64_t>(group_words));
      const int64_t first = g * group_words / 8;
      for (int64_t vector = first; vector < std::min(first + group_words, vectors); ++vector) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const auto begin = static_cast<int>((vector - first) * 8);
        const __m256i group = _mm256_srl_epi32(
            _mm256_add_epi32(lane, _mm256_set1_epi32(begin)), _mm_cvtsi32_si128(words_log2));
        add_vector(vector, [&](int r, int m) ZMLX_INLINED {
          return _mm256_permutevar8x32_ps(_mm256_load_ps(scale[r][m]), group);
        });
      }
    }
  }
  unrolled<R * M>([&](int i)
                      ZMLX_INLINED { out[i % M * ld + i / M] = sum_of(total[i / M][i % M]); });
}

template <Code C, bool Wide, int R, int M>
void run_few_as(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  Row<C> x[M];
  for (int m = 0; m < M; ++m) {
    x[m] = Row<C>(s, rows, row_bytes, m);
  }
  int64_t j = outputs.begin;
  for (; outputs.end - j >= R; j += R) {
    dot_few<C, Wide, R, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
  for (; j < outputs.end; ++j) {
    dot_few<C, Wide, 1, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
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
  if constexpr (may_be_narrow(C)) {
    if (!may_be_wide(C) || s.format.group_size < block_of(C)) {
      return run_few_as<C, false, R, M>(s, w, outputs, rows, row_bytes, out, ld);
    }
  }
  if constexpr (may_be_wide(C)) {
    run_few_as<C, true, R, M>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

// A panel is 16 weight rows decoded for up to panel_words words: [word][plane][16 rows] pairs of
// 16-bit codes.
constexpr int64_t panel_outputs = 16;
constexpr int64_t panel_bytes = 32768;

constexpr int64_t panel_words(Code code) {
  return panel_bytes / (panel_outputs * 4 * planes_of(code));
}

/// Turns 8 rows of 8 words into 8 columns.
[[gnu::always_inline]] inline void transpose(__m256i* v) {
  __m256i t[8];
  unrolled<4>([&](int i) ZMLX_INLINED {
    t[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  });
  __m256i u[8];
  unrolled<2>([&](int h) ZMLX_INLINED {
    u[4 * h] = _mm256_unpacklo_epi64(t[4 * h], t[4 * h + 2]);
    u[4 * h + 1] = _mm256_unpackhi_epi64(t[4 * h], t[4 * h + 2]);
    u[4 * h + 2] = _mm256_unpacklo_epi64(t[4 * h + 1], t[4 * h + 3]);
    u[4 * h + 3] = _mm256_unpackhi_epi64(t[4 * h + 1], t[4 * h + 3]);
  });
  unrolled<4>([&](int c) ZMLX_INLINED {
    v[c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x20);
    v[4 + c] = _mm256_permute2x128_si256(u[c], u[4 + c], 0x31);
  });
}

/// Decodes words [begin, end) of `height` rows; begin is a multiple of 8, missing rows and words
/// become zero.
template <Code C>
void fill_panel(
    const MatmulShape& s,
    const uint8_t* codes,
    int64_t height,
    Range words,
    std::byte* panel) {
  constexpr int count = planes_of(C);
  const int64_t row_bytes = s.row_bytes();
  for (int64_t word = words.begin; word < words.end; word += 8) {
    const int64_t at = word / 8 * vector_bytes(C);
    // The same piece of the next panel, in the order of addresses.
    for (int64_t line = 0; line < panel_outputs * vector_bytes(C); line += 64) {
      fetch(codes, panel_outputs * (row_bytes + at) + line);
    }
    for (int64_t half = 0; half < 2; ++half) {
      __m256i v[8];
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t row = half * 8 + i;
        const uint8_t* from = codes + row * row_bytes + at;
        v[i] = row >= height       ? _mm256_setzero_si256()
            : row_bytes - at >= 32 ? load_codes<C>(from)
                                   : load_last<C>(from, row_bytes - at);
      }
      transpose(v);
      std::byte* to = panel + (word - words.begin) * count * 64 + half * 32;
      for (int i = 0; i < 8; ++i) {
        __m256i plane[count];
        planes<C>(v[i], plane);
        for (int c = 0; c < count; ++c) {
          _mm256_store_si256(reinterpret_cast<__m256i*>(to), plane[c]);
          to += 64;
        }
      }
    }
  }
}

/// Scales or biases of groups [begin, end) of `height` rows, transposed to floats [group][16].
template <Code C>
void fill_scales(
    const MatmulShape& s,
    const std::byte* from,
    int64_t height,
    Range groups,
    float* to) {
  for (int64_t g = groups.begin; g < groups.end; g += 8) {
    const int64_t count = std::min<int64_t>(8, groups.end - g);
    for (int64_t half = 0; half < 2; ++half) {
      __m256i v[8];
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t row = half * 8 + i;
        const std::byte* line = from + row * s.groups() * s.scale_bytes();
        v[i] = row < height ? _mm256_castps_si256(load_scales<C>(s.dtype, line, g, s.groups() - g))
                            : _mm256_setzero_si256();
      }
      transpose(v);
      float* at = to + (g - groups.begin) * panel_outputs + half * 8;
      for (int64_t i = 0; i < count; ++i) {
        _mm256_store_ps(at + i * panel_outputs, _mm256_castsi256_ps(v[i]));
      }
    }
  }
}

struct Panel {
  const std::byte* codes;
  const float* scales;
  const float* biases;
  Range words;
  int64_t group_words;
  int64_t first_group;
};

/// M rows of activations times a panel, added to out (or stored, by the first panel).
template <Code C, int M>
void multiply(const Panel& p, const Row<C>* x, bool first, float* out, int64_t ld) {
  constexpr int count = planes_of(C);
  const std::byte* codes = p.codes;
  const int16_t* values[M];
  for (int m = 0; m < M; ++m) {
    values[m] = x[m].values;
  }
  int64_t group = 0;
  for (int64_t begin = p.words.begin; begin < p.words.end; begin += p.group_words, ++group) {
    __m256i part[M][2];
    unrolled<M>([&](int m) ZMLX_INLINED { part[m][0] = part[m][1] = _mm256_setzero_si256(); });
    for (int64_t word = begin; word < begin + p.group_words; ++word) {
      const int64_t at = word / 8 * block_of(C) + word % 8 * 2;
#pragma GCC unroll 8
      for (int c = 0; c < count; ++c) {
        const auto* pairs = reinterpret_cast<const __m256i*>(codes);
        const __m256i w0 = _mm256_load_si256(pairs);
        const __m256i w1 = _mm256_load_si256(pairs + 1);
        codes += 64;
        unrolled<M>([&](int m) ZMLX_INLINED {
          int pair;
          std::memcpy(&pair, values[m] + at + c * 16, 4);
          const __m256i value = _mm256_set1_epi32(pair);
          add_products(part[m][0], w0, value);
          add_products(part[m][1], w1, value);
        });
      }
    }
    const bool fresh = first && group == 0;
    const int64_t g = p.first_group + group;
    unrolled<2 * M>([&](int i) ZMLX_INLINED {
      const int m = i / 2;
      const int64_t at = group * panel_outputs + i % 2 * 8;
      float* to = out + m * ld + i % 2 * 8;
      __m256 total = fresh ? _mm256_setzero_ps() : _mm256_loadu_ps(to);
      const __m256 scale =
          _mm256_mul_ps(_mm256_load_ps(p.scales + at), _mm256_broadcast_ss(x[m].scales + g));
      total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part[m][i % 2]), scale, total);
      if constexpr (is_affine(C)) {
        const __m256 sum = _mm256_broadcast_ss(x[m].sums + g);
        total = _mm256_fmadd_ps(sum, _mm256_load_ps(p.biases + at), total);
      }
      _mm256_storeu_ps(to, total);
    });
  }
}

constexpr int tall = 6; // rows of one multiply: 12 accumulators

template <Code C, int M>
void multiply_up_to(
    int64_t count,
    const Panel& p,
    const Row<C>* x,
    bool first,
    float* out,
    int64_t ld) {
  if (count == M) {
    multiply<C, M>(p, x, first, out, ld);
  } else if constexpr (M > 1) {
    multiply_up_to<C, M - 1>(count, p, x, first, out, ld);
  }
}

template <Code C>
void run_panels(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  constexpr int64_t least_group = 16 / std::min<int64_t>(16, word_codes(C)); // words, of nvfp4
  alignas(64) std::byte codes[panel_bytes];
  alignas(64) float scales[panel_words(C) / least_group * panel_outputs];
  alignas(64) float biases[is_affine(C) ? panel_words(C) / least_group * panel_outputs : 1];
  alignas(64) float narrow[tall * panel_outputs];
  const int64_t words = s.k / word_codes(C);
  const int64_t group_words = s.format.group_size / word_codes(C);
  for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
    const int64_t height = std::min(panel_outputs, outputs.end - j);
    for (int64_t begin = 0; begin < words; begin += panel_words(C)) {
      const Range part{begin, std::min(begin + panel_words(C), words)};
      fill_panel<C>(
          s, static_cast<const uint8_t*>(w.codes) + j * s.row_bytes(), height, part, codes);
      const Range groups{part.begin / group_words, part.end / group_words};
      auto fill = [&](const void* all, float* to) {
        auto* from = static_cast<const std::byte*>(all) + j * s.groups() * s.scale_bytes();
        fill_scales<C>(s, from, height, groups, to);
      };
      fill(w.scales, scales);
      if constexpr (is_affine(C)) {
        fill(w.biases, biases);
      }
      const Panel panel{codes, scales, biases, part, group_words, groups.begin};
      for (int64_t i = 0; i < rows.count;) {
        // The last rows in equal parts: 8 as 4 and 4, not 6 and 2.
        const int64_t left = rows.count - i;
        const int64_t parts = (left + tall - 1) / tall;
        const int64_t count = (left + parts - 1) / parts;
        Row<C> x[tall];
        for (int64_t m = 0; m < count; ++m) {
          x[m] = Row<C>(s, rows, row_bytes, i + m);
        }
        float* to = out + i * ld + j - outputs.begin;
        if (height == panel_outputs) {
          multiply_up_to<C, tall>(count, panel, x, begin == 0, to, ld);
        } else {
          for (int64_t m = 0; m < count && begin; ++m) {
            std::copy_n(to + m * ld, height, narrow + m * panel_outputs);
          }
          multiply_up_to<C, tall>(count, panel, x, begin == 0, narrow, panel_outputs);
          for (int64_t m = 0; m < count; ++m) {
            std::copy_n(narrow + m * panel_outputs, height, to + m * ld);
          }
        }
        i += count;
      }
    }
  }
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
    default:
      return run_panels<C>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

/// The functions for one Code.
struct Functions {
  decltype(&prepared_bytes_as<Code::affine4>) prepared_bytes = nullptr;
  decltype(&prepare_as<Activations::exact, Code::affine4>) prepare = nullptr;
  decltype(&run_as<Code::affine4>) run = nullptr;
};

/// Those of each Code, in its order; none for elements that are no small integers.
template <Activations A>
const Functions& functions(const MatmulShape& s) {
  using enum Code;
  static constexpr auto all = []<Code... C>() {
    return std::array{Functions{}, Functions{prepared_bytes_as<C>, prepare_as<A, C>, run_as<C>}...};
  };
  static constexpr auto affine =
      all.template operator()<affine2, affine3, affine4, affine5, affine6, affine8>();
  static constexpr Functions fp4[] = {
      {prepared_bytes_as<mxfp4>, prepare_as<A, mxfp4>, run_as<mxfp4>},
      {},
      {prepared_bytes_as<nvfp4>, prepare_as<A, nvfp4>, run_as<nvfp4>}};
  const auto at = static_cast<size_t>(code_of(s.format));
  return at < affine.size() ? affine[at] : fp4[at - affine.size()];
}

size_t prepared_bytes(const MatmulShape& s) {
  return functions<Activations::exact>(s).prepared_bytes(s);
}

template <Activations A>
void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  functions<A>(s).prepare(s, x, to);
}

void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  functions<Activations::exact>(s).run(s, w, outputs, rows, row_bytes, out, ld);
}

} // namespace

const MatmulKernels* int16_matmul(const MatmulShape& s, Activations activations) {
  // Every CPU with FMA converts float16, too; the compilers' lists do not all name that.
  static const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  constexpr auto exact = Activations::exact;
  constexpr auto int8 = Activations::int8;
  static const MatmulKernels kernels[] = {
      {"AVX2_INT16", prepared_bytes, prepare<exact>, run},
      {"AVX2_INT8", prepared_bytes, prepare<int8>, run}};
  const bool has = here && s.dtype != Dtype::f32 && functions<exact>(s).run;
  return has ? &kernels[activations == int8] : nullptr;
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* int16_matmul(const MatmulShape&, Activations) {
  return nullptr;
}

} // namespace zmlx::cpu

#endif
