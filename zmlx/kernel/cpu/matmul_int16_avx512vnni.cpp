// zmlx/kernel/cpu/matmul_int16_avx512vnni.cpp: matmul of few rows by AVX-512's sums of four
// products of bytes. Codes are exact; activations become integers of two bytes, which meet the
// codes one after the other.
#include "zmlx/kernel/cpu/matmul_kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include <algorithm>
#include <array>

#include "zmlx/kernel/cpu/int16.h"
#include "zmlx/kernel/cpu/int8.h"
#include "zmlx/kernel/cpu/matmul_vnni.h"

namespace zmlx::cpu {
namespace {

/// Where the parts of a prepared row begin, in bytes: high bytes and low ones, each in the order in
/// which packed codes meet them (block b, plane c, byte i is element (b * 64 + i) * planes + c),
/// then a group's scale, its sum for affine codes, and what the offset of short floats adds to each
/// 32-bit lane.
struct Int16Row {
  static constexpr int terms = 2;
  int64_t low_at;
  int64_t scales_at;
  int64_t sums_at;
  int64_t lanes_at;
  int64_t bytes;

  Int16Row(const MatmulShape& s, Code code) {
    const int planes = byte_planes(code);
    const int64_t block = block_of(code);
    low_at = (s.k + block - 1) / block * block;
    const int64_t floats = (s.groups() + 15) / 16 * 64;
    scales_at = 2 * low_at;
    sums_at = scales_at + floats;
    lanes_at = sums_at + (is_affine(code) ? floats : 0);
    bytes = lanes_at + (is_affine(code) ? 0 : low_at / planes);
    // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
    bytes += bytes % 4096 ? 0 : 64;
  }
};

template <Code C>
size_t prepared_bytes_as(const MatmulShape& s) {
  return static_cast<size_t>(Int16Row(s, C).bytes);
}

/// From 255 / 128 times a power of two on, the high byte would be 128.
constexpr uint32_t headroom = 1u << 16;

template <Code C>
void prepare_as(const MatmulShape& s, const void* x, std::byte* to) {
  const Int16Row row(s, C);
  const int64_t size = s.format.group_size;
  auto* scales = reinterpret_cast<float*>(to + row.scales_at);
  auto* sums = reinterpret_cast<float*>(to + row.sums_at);
  const int64_t tail = (s.groups() + 15) / 16 * 16 - s.groups();
  std::fill_n(scales + s.groups(), tail, 0.0f);
  if constexpr (is_affine(C)) {
    std::fill_n(sums + s.groups(), tail, 0.0f);
  }
  for (int64_t term : {int64_t{0}, row.low_at}) {
    std::fill_n(to + term + s.k, row.low_at - s.k, std::byte{0});
  }
  const __m512i half = _mm512_set1_epi32(128);
  for (int64_t g = 0; g < s.groups(); ++g) {
    const auto* from =
        static_cast<const std::byte*>(x) + g * size * static_cast<int64_t>(size_of(s.dtype));
    const auto [inverse, scale] = int16_scale(largest_of(s.dtype, from, size), headroom);
    const __m512 factor = _mm512_set1_ps(inverse);
    __m512i total = _mm512_setzero_si512();
    for (int64_t i = 0; i < size; i += 16) {
      const __m512i whole = round_16(s.dtype, from, i, factor);
      total = _mm512_add_epi32(total, whole);
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, half), 8);
      auto* at = reinterpret_cast<__m128i*>(to + g * size + i);
      _mm_storeu_si128(at, _mm512_cvtepi32_epi8(high));
      _mm_storeu_si128(at + row.low_at / 16, _mm512_cvtepi32_epi8(whole));
    }
    scales[g] = scale;
    if constexpr (is_affine(C)) {
      sums[g] = scale * static_cast<float>(_mm512_reduce_add_epi32(total));
    }
  }
  if constexpr (byte_planes(C) > 1) {
    order_planes<C>(to, to, 2 * row.low_at);
  }
  if constexpr (!is_affine(C)) {
    fill_lanes<C>(row, to, row.low_at);
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
      return run_few<C, Int16Row, 4, 1>(s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<C, Int16Row, 2, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<C, Int16Row, 2, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<C, Int16Row, 2, 4>(s, w, outputs, rows, row_bytes, out, ld);
    case 5:
      return run_few<C, Int16Row, 2, 5>(s, w, outputs, rows, row_bytes, out, ld);
    case 6:
      return run_few<C, Int16Row, 2, 6>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return in_halves(rows, row_bytes, out, ld, [&](const Rows& part, float* to) {
        run_as<C>(s, w, outputs, part, row_bytes, to, ld);
      });
  }
}

/// The functions for each Code with integers, in its order.
struct Functions {
  decltype(&prepared_bytes_as<Code::affine4>) prepared_bytes;
  decltype(&prepare_as<Code::affine4>) prepare;
  decltype(&run_as<Code::affine4>) run;
};

template <Code... C>
constexpr std::array<Functions, sizeof...(C)> functions_of() {
  return {Functions{prepared_bytes_as<C>, prepare_as<C>, run_as<C>}...};
}

const Functions& functions(const MatmulShape& s) {
  using enum Code;
  static constexpr auto all =
      functions_of<affine2, affine3, affine4, affine5, affine6, affine8, mxfp4, nvfp4>();
  const Code code = code_of(s.format);
  return all[code == nvfp4 ? 7 : static_cast<size_t>(code) - 1];
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

const MatmulKernels* vnni_int16_matmul(const MatmulShape& shape) {
  static const MatmulKernels kernels{"AVX512_INT16", prepared_bytes, prepare, run};
  const bool fits = shape.dtype != Dtype::f32 && fits_int8(shape.format);
  return vnni_int8_matmul() && fits ? &kernels : nullptr;
}

} // namespace zmlx::cpu

#else

namespace zmlx::cpu {

const MatmulKernels* vnni_int16_matmul(const MatmulShape&) {
  return nullptr;
}

} // namespace zmlx::cpu

#endif
