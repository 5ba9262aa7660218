// zmlx/kernel/cpu/matmul_avx512bf16.cpp: bf16 matmul by AVX-512 bf16 dot products. Codes are exact
// in bf16, so nothing is rounded but the float32 sums.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "zmlx/kernel/cpu/matmul_bf16.h"

namespace zmlx::cpu {
namespace {

template <Code C>
int64_t blocks_of(const MatmulShape& s) {
  constexpr int64_t block = 32 * planes_of(C);
  return (s.k + block - 1) / block;
}

/// bf16 elements of a prepared row before its group sums (float32). Block b, plane c, lane i holds
/// element (b * 32 + i) * planes + c.
template <Code C>
int64_t row_elements(const MatmulShape& s) {
  return blocks_of<C>(s) * 32 * planes_of(C);
}

/// Sums are there for biases alone.
template <Code C>
int64_t row_sums(const MatmulShape& s) {
  return is_affine(C) ? (s.groups() + 15) / 16 * 16 : 0;
}

template <Code C>
size_t prepared_bytes_as(const MatmulShape& s) {
  const int64_t bytes = row_elements<C>(s) * 2 + row_sums<C>(s) * 4;
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

/// Lane i is lane 2 i + which of two vectors.
constexpr Lanes make_every_second(int which) {
  Lanes table{};
  for (int i = 0; i < 32; ++i) {
    table.values[i] = static_cast<uint16_t>(2 * i + which);
  }
  return table;
}
constexpr Lanes even_lanes = make_every_second(0);
constexpr Lanes odd_lanes = make_every_second(1);

/// Turns `Planes` vectors of consecutive elements into planes: plane c has elements c, c + Planes,
/// and so on.
template <int Planes>
[[gnu::always_inline]] inline void to_planes(__m512i* v) {
  if constexpr (Planes > 1) {
    constexpr int half = Planes / 2;
    __m512i even[half];
    __m512i odd[half];
    for (int i = 0; i < half; ++i) {
      even[i] = _mm512_permutex2var_epi16(v[2 * i], lanes(even_lanes), v[2 * i + 1]);
      odd[i] = _mm512_permutex2var_epi16(v[2 * i], lanes(odd_lanes), v[2 * i + 1]);
    }
    to_planes<half>(even);
    to_planes<half>(odd);
    for (int i = 0; i < half; ++i) {
      v[2 * i] = even[i];
      v[2 * i + 1] = odd[i];
    }
  }
}

template <Code C>
void prepare_as(const MatmulShape& s, const void* x, std::byte* to) {
  constexpr int planes = planes_of(C);
  auto* from = static_cast<const uint16_t*>(x);
  auto* row = reinterpret_cast<uint16_t*>(to);
  for (int64_t b = 0; b < s.k; b += 32 * planes) {
    __m512i v[planes];
    for (int c = 0; c < planes; ++c) {
      const int64_t at = b + 32 * c;
      v[c] = _mm512_maskz_loadu_epi16(first_halves(s.k - at), from + (at < s.k ? at : 0));
    }
    to_planes<planes>(v);
    for (int c = 0; c < planes; ++c) {
      _mm512_store_si512(row + b + 32 * c, v[c]);
    }
  }
  if constexpr (is_affine(C)) {
    auto* sums = reinterpret_cast<float*>(row + row_elements<C>(s));
    const __m512bh one = bf16(_mm512_set1_epi16(0x3F80));
    for (int64_t g = s.groups(); g < row_sums<C>(s); ++g) {
      sums[g] = 0;
    }
    for (int64_t g = 0; g < s.groups(); ++g) {
      __m512 total = _mm512_setzero_ps();
      for (int64_t i = 0; i < s.format.group_size; i += 32) {
        const __m512i values = _mm512_loadu_si512(from + g * s.format.group_size + i);
        total = _mm512_dpbf16_ps(total, bf16(values), one);
      }
      sums[g] = _mm512_reduce_add_ps(total);
    }
  }
}

/// Codes of 16 words times the matching activations of M rows.
template <Code C, int M>
[[gnu::always_inline]] inline void dot_words(
    const Tables<C>& tables,
    __m512i packed,
    const uint16_t* const* x,
    int64_t at,
    __m512* part) {
  unrolled<M>([&](int m) ZMLX_INLINED { part[m] = _mm512_setzero_ps(); });
  const auto dot = [&](__m512i values, int c) ZMLX_INLINED {
    unrolled<M>([&](int m) ZMLX_INLINED {
      const __m512bh value = bf16(_mm512_load_si512(x[m] + at + c * 32));
      part[m] = _mm512_dpbf16_ps(part[m], bf16(values), value);
    });
  };
  if constexpr (C == Code::affine8) {
    // An 8-bit code is two 4-bit ones, the upper times 16, that meet the same activation.
    unrolled<4>([&](int i) ZMLX_INLINED {
      const __m512i index = shifted(packed, static_cast<unsigned>(4 * i));
      dot(_mm512_permutexvar_epi16(index, tables.values[i & 1]), i / 2);
    });
  } else {
    __m512i plane[planes_of(C)];
    planes<C>(tables, packed, plane);
    unrolled<planes_of(C)>([&](int c) ZMLX_INLINED { dot(plane[c], c); });
  }
}

/// R weight rows, from row `j` on, times M rows of activations, codes used as they are decoded.
template <Code C, int R, int M>
void dot_few(
    const MatmulShape& s,
    const Weight& w,
    int64_t j,
    const uint16_t* const* x,
    float* out,
    int64_t ld) {
  const Tables<C> tables;
  const int64_t row_bytes = s.row_bytes();
  auto* codes = static_cast<const uint8_t*>(w.codes) + j * row_bytes;
  __m512 total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = _mm512_setzero_ps();
    }
  }
  if constexpr (C == Code::dense) {
    for (int64_t k = 0; k < s.k; k += 32) {
      for (int r = 0; r < R; ++r) {
        fetch_codes(codes, k * 2 * R + r * 64);
        const __m512i row = load_codes<C>(tables, codes + r * row_bytes + k * 2, row_bytes - k * 2);
        for (int m = 0; m < M; ++m) {
          const __m512bh value = bf16(_mm512_load_si512(x[m] + k));
          total[r][m] = _mm512_dpbf16_ps(total[r][m], bf16(row), value);
        }
      }
    }
  } else {
    constexpr int64_t word_codes = 2 * planes_of(C);
    constexpr int64_t size = is_affine(C) ? 2 : 1; // of a scale
    const int64_t groups = s.groups();
    auto* scales = static_cast<const std::byte*>(w.scales) + j * groups * size;
    auto* biases = static_cast<const std::byte*>(w.biases) + (is_affine(C) ? j * groups * size : 0);
    const int64_t words = s.k / word_codes;
    const int64_t group_words = s.format.group_size / word_codes;
    const int words_log2 = std::countr_zero(static_cast<uint64_t>(group_words));
    const int64_t sums = row_elements<C>(s);
    int64_t passed = 0;
    for (int64_t g = 0; g < groups; g += 16) {
      __m512 scale[R];
      for (int64_t line = 0; line < R * 16 * size; line += 64) {
        fetch(scales, scales_ahead + g * size * R + line);
        if constexpr (is_affine(C)) {
          fetch(biases, scales_ahead + g * size * R + line);
        }
      }
      for (int r = 0; r < R; ++r) {
        const int64_t at = (r * groups + g) * size;
        scale[r] = load_scales<C>(scales + at, groups - g);
        if constexpr (is_affine(C)) {
          const __m512 bias = load_scales<C>(biases + at, groups - g);
          for (int m = 0; m < M; ++m) {
            const __m512 sum = _mm512_load_ps(reinterpret_cast<const float*>(x[m] + sums) + g);
            total[r][m] = _mm512_fmadd_ps(bias, sum, total[r][m]);
          }
        }
      }
      const int64_t first = g * group_words;
      const int64_t last = std::min(words, first + 16 * group_words);
      for (int64_t word = first; word < last; word += 16) {
        const __m512i lane_group = group_of_lane((word - first) / 16, words_log2);
        const int64_t at = word / 16 * vector_bytes(C);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          fetch_codes(codes, passed + r * vector_bytes(C));
          const __m512i packed = load_codes<C>(tables, codes + r * row_bytes + at, row_bytes - at);
          __m512 part[M];
          dot_words<C, M>(tables, packed, x, word * word_codes, part);
          const __m512 lane_scale = _mm512_permutexvar_ps(lane_group, scale[r]);
          for (int m = 0; m < M; ++m) {
            total[r][m] = _mm512_fmadd_ps(part[m], lane_scale, total[r][m]);
          }
        }
        passed += R * vector_bytes(C);
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

template <Code C, int R, int M>
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
  int64_t j = outputs.begin;
  for (; outputs.end - j >= R; j += R) {
    dot_few<C, R, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
  for (; j < outputs.end; ++j) {
    dot_few<C, 1, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
}

constexpr int64_t panel_bytes = 65536;

constexpr int64_t panel_words(Code code) {
  return panel_bytes / (panel_outputs * 4 * planes_of(code));
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
template <Code C, int M>
void multiply(
    const Panel& p,
    const uint16_t* const* x,
    bool first,
    __mmask16 keep0,
    __mmask16 keep1,
    float* out,
    int64_t ld) {
  constexpr int planes = planes_of(C);
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
      if constexpr (C == Code::dense) {
        t0 = _mm512_add_ps(t0, part[m][0]);
        t1 = _mm512_add_ps(t1, part[m][1]);
      } else {
        const float* scales = p.scales + group * panel_outputs;
        t0 = _mm512_fmadd_ps(part[m][0], _mm512_load_ps(scales), t0);
        t1 = _mm512_fmadd_ps(part[m][1], _mm512_load_ps(scales + 16), t1);
      }
      if constexpr (is_affine(C)) {
        const float* biases = p.biases + group * panel_outputs;
        const float* sums = reinterpret_cast<const float*>(x[m] + p.sums);
        const __m512 sum = _mm512_set1_ps(sums[p.first_group + group]);
        t0 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases), t0);
        t1 = _mm512_fmadd_ps(sum, _mm512_load_ps(biases + 16), t1);
      }
      _mm512_mask_storeu_ps(to, keep0, t0);
      _mm512_mask_storeu_ps(to + 16, keep1, t1);
    }
  }
}

constexpr int tall = 12; // rows of one multiply: 24 accumulators

template <Code C, int M>
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
    multiply<C, M>(p, x, first, keep0, keep1, out, ld);
  } else if constexpr (M > 1) {
    multiply_up_to<C, M - 1>(count, p, x, first, keep0, keep1, out, ld);
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
  constexpr int64_t word_codes = 2 * planes_of(C);
  alignas(64) std::byte codes[panel_bytes];
  alignas(64) float scales[panel_words(C) / 2 * panel_outputs];
  alignas(64) float biases[is_affine(C) ? panel_words(C) / 2 * panel_outputs : 1];
  const int64_t words = (s.k + word_codes - 1) / word_codes;
  const int64_t group_words = s.format.group_size / word_codes;
  for (int64_t j = outputs.begin; j < outputs.end; j += panel_outputs) {
    const int64_t height = std::min(panel_outputs, outputs.end - j);
    for (int64_t begin = 0; begin < words; begin += panel_words(C)) {
      const Range part{begin, std::min(begin + panel_words(C), words)};
      auto* from = static_cast<const uint8_t*>(w.codes) + j * s.row_bytes();
      fill_panel<C>(s, from, height, part, codes);
      Panel panel{codes, scales, biases, part, part.end - part.begin, 0, row_elements<C>(s)};
      if constexpr (C != Code::dense) {
        const Range groups{part.begin / group_words, part.end / group_words};
        auto fill = [&](const void* all, float* to) {
          auto* rows_from_j = static_cast<const std::byte*>(all) + j * s.groups() * s.scale_bytes();
          fill_scales(rows_from_j, s.scale_bytes(), s.groups(), height, groups, to, load_scales<C>);
        };
        fill(w.scales, scales);
        if constexpr (is_affine(C)) {
          fill(w.biases, biases);
        }
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
        multiply_up_to<C, tall>(count, panel, x, begin == 0, keep0, keep1, to, ld);
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
      return run_few < C, C == Code::dense ? 2 : 4, 1 > (s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<C, 2, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<C, 2, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<C, 2, 4>(s, w, outputs, rows, row_bytes, out, ld);
    case 5:
      return run_few<C, 2, 5>(s, w, outputs, rows, row_bytes, out, ld);
    case 6:
      return run_few<C, 2, 6>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      break;
  }
  if (rows.count > few_rows) {
    return run_panels<C>(s, w, outputs, rows, row_bytes, out, ld);
  }
  in_halves(rows, row_bytes, out, ld, [&](const Rows& half, float* to) {
    run_as<C>(s, w, outputs, half, row_bytes, to, ld);
  });
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

const MatmulKernels* bf16_matmul() {
  static const bool here = __builtin_cpu_supports("avx512bf16") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vbmi");
  static const MatmulKernels kernels{"AVX512_BF16", prepared_bytes, prepare, run};
  return here ? &kernels : nullptr;
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* bf16_matmul() {
  return nullptr;
}

} // namespace zmlx::cpu

#endif
