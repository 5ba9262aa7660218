// zmlx/kernel/cpu/matmul_int8_avx512vnni.cpp: matmul of 8-bit activations by AVX-512's sums of four
// products of bytes. Sums within a group are exact integers; groups are added up in float32.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "zmlx/kernel/cpu/matmul_int8.h"
#include "zmlx/kernel/cpu/matmul_vnni.h"

namespace zmlx::cpu {
namespace {

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

/// Rounds a row's groups to integers in natural order at `to`, and writes scales and sums.
template <Code C>
void round_row(const MatmulShape& s, const std::byte* x, int8_t* to, float* scales, void* sums) {
  const int64_t size = s.format.group_size;
  for (int64_t g = 0; g < s.groups(); ++g) {
    const int64_t at = g * size;
    const std::byte* from = x + at * static_cast<int64_t>(size_of(s.dtype));
    const auto [inverse, scale] = int8_scale(largest_of(s.dtype, from, size));
    const __m512 factor = _mm512_set1_ps(inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += 16) {
      const __m512i whole = round_16(s.dtype, from, i, factor);
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
  constexpr int planes = byte_planes(C);
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
    order_planes<C>(natural, to, row.padded);
    const uint8_t* order = group_order_of<planes>(s.format.group_size);
    const __m512i first = _mm512_load_si512(order);
    const __m512i second = _mm512_load_si512(order + 64);
    for (int64_t b = 0; b < row.padded; b += 128) {
      std::byte* pair = natural + b;
      const __m512i v0 = _mm512_load_si512(pair);
      const __m512i v1 = _mm512_load_si512(pair + 64);
      _mm512_store_si512(pair, _mm512_permutex2var_epi8(v0, first, v1));
      _mm512_store_si512(pair + 64, _mm512_permutex2var_epi8(v0, second, v1));
    }
  }
  if constexpr (!is_affine(C)) {
    fill_lanes<C>(row, to, row.padded);
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
  constexpr int planes = byte_planes(C);
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
      return run_few<C, Int8Row, 4, 1>(s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<C, Int8Row, 2, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<C, Int8Row, 2, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<C, Int8Row, 2, 4>(s, w, outputs, rows, row_bytes, out, ld);
    case 5:
      return run_few<C, Int8Row, 2, 5>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      break;
  }
  if (rows.count > few_rows) {
    return run_panels<C, Tiles>(s, w, outputs, rows, row_bytes, out, ld);
  }
  in_halves(rows, row_bytes, out, ld, [&](const Rows& half, float* to) {
    run_as<C, Tiles>(s, w, outputs, half, row_bytes, to, ld);
  });
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
