// zmlx/kernel/cpu/matmul_kernels.h: the table of functions behind Matmul, one for each instruction
// set.
#pragma once

#include <algorithm>
#include <vector>

#include "zmlx/kernel/cpu/matmul.h"

namespace zmlx::cpu {

/// What one template of a kernel is made for.
enum class Code {
  dense,
  affine2,
  affine3,
  affine4,
  affine5,
  affine6,
  affine8,
  mxfp4,
  mxfp8,
  nvfp4
};

constexpr int bits_of(Code code) {
  constexpr int bits[] = {0, 2, 3, 4, 5, 6, 8, 4, 8, 4};
  return bits[static_cast<int>(code)];
}

constexpr bool is_affine(Code code) {
  return code >= Code::affine2 && code <= Code::affine8;
}

/// Codes that lie whole in one byte of a weight. Those that cross bytes are spread out first.
constexpr int byte_planes(Code code) {
  const int bits = bits_of(code);
  return bits == 2 ? 4 : bits == 4 ? 2 : 1;
}

inline Code code_of(WeightFormat format) {
  switch (format.mode) {
    case Quantisation::mxfp4:
      return Code::mxfp4;
    case Quantisation::mxfp8:
      return Code::mxfp8;
    case Quantisation::nvfp4:
      return Code::nvfp4;
    default:
      return format.bits == 8 ? Code::affine8 : Code{std::max(format.bits - 1, 0)};
  }
}

struct MatmulShape {
  Dtype dtype;
  WeightFormat format;
  int64_t k;

  int64_t groups() const {
    return format.bits ? k / format.group_size : 0;
  }
  /// Bytes of one weight row's codes, or of its elements when dense.
  int64_t row_bytes() const {
    return format.bits ? k * format.bits / 8 : k * static_cast<int64_t>(size_of(dtype));
  }
  int64_t scale_bytes() const {
    return format.has_biases() ? static_cast<int64_t>(size_of(dtype)) : 1;
  }
};

/// f(rows, out) for both halves of `rows`: twice over the weights, which a cache still holds.
template <typename F>
void in_halves(const Rows& rows, size_t row_bytes, float* out, int64_t ld, F&& f) {
  const int64_t half = (rows.count + 1) / 2;
  f(Rows{rows.prepared, half, rows.index}, out);
  Rows rest{rows.prepared, rows.count - half, rows.index};
  if (rest.index) {
    rest.index += half;
  } else {
    rest.prepared += static_cast<size_t>(half) * row_bytes;
  }
  f(rest, out + half * ld);
}

struct MatmulKernels {
  const char* name;
  size_t (*prepared_bytes)(const MatmulShape& shape);
  void (*prepare)(const MatmulShape& shape, const void* x, std::byte* to);
  void (*run)(
      const MatmulShape& shape,
      const Weight& weight,
      Range outputs,
      const Rows& rows,
      size_t row_bytes,
      float* out,
      int64_t ld);
  bool large_blocks = false; // many rows share what one run does to weights
};

/// Float32 arithmetic on any CPU, for every format and dtype; the best instruction set that Highway
/// finds.
const MatmulKernels* portable_matmul();
/// The same for each instruction set of this CPU, for tests. Not while other threads compute.
std::vector<const MatmulKernels*> portable_matmuls();
/// bf16 dot products, for bf16 activations and every weight format; nullptr where the CPU or the
/// build has none.
const MatmulKernels* bf16_matmul();
/// The same by AMX's tiles: panels of decoded weights for any number of rows, so not for the
/// fewest.
const MatmulKernels* amx_bf16_matmul();
/// AVX2's products of 16-bit integers, for bf16 and f16 activations and codes that are integers, or
/// half integers; nullptr for other shapes, and where the CPU or the build has none. int8
/// activations are integers of 8 bits in the same place.
const MatmulKernels* int16_matmul(
    const MatmulShape& shape,
    Activations activations = Activations::exact);
/// The same integers by AVX-512's products of bytes, high and low ones. For few rows: any number is
/// right.
const MatmulKernels* vnni_int16_matmul(const MatmulShape& shape);
/// Activations rounded to 8 bits, for formats that fit_int8(): in float32 on any CPU; by AVX-512's
/// sums of products of bytes; the same with AMX's tiles for many rows. The latter are nullptr where
/// the CPU or the build has none.
const MatmulKernels* portable_int8_matmul();
const MatmulKernels* vnni_int8_matmul();
const MatmulKernels* amx_int8_matmul();

} // namespace zmlx::cpu
