// zmlx/kernel/cpu/matmul_int8.cpp: products with activations of 8 bits on any CPU, in float32: rows
// are rounded as int8.h says and go through the portable matmul. The oracle of the faster ones.
#include <algorithm>
#include <cmath>

#include "zmlx/kernel/cpu/int8.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/kernel/cpu/rows.h"

namespace zmlx::cpu {
namespace {

size_t row_bytes_of_portable(const MatmulShape& s) {
  return portable_matmul()->prepared_bytes(s);
}

/// The row as the portable matmul wants it, and the rounded floats that it is made from.
size_t prepared_bytes(const MatmulShape& s) {
  return row_bytes_of_portable(s) + (static_cast<size_t>(s.k) * sizeof(float) + 63) / 64 * 64;
}

void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  auto* row = reinterpret_cast<float*>(to + row_bytes_of_portable(s));
  load_row(s.dtype, x, row, s.k);
  const int64_t size = s.format.group_size;
  for (float* group = row; group < row + s.k; group += size) {
    float largest = 0;
    bool finite = true;
    for (int64_t i = 0; i < size; ++i) {
      largest = std::max(largest, std::abs(group[i]));
      finite = finite && std::isfinite(group[i]);
    }
    const auto [inverse, scale] = int8_scale(finite ? largest : NAN);
    for (int64_t i = 0; i < size; ++i) {
      // Not a product: zero times infinity.
      group[i] = inverse != 0 ? std::nearbyint(group[i] * inverse) * scale : scale;
    }
  }
  MatmulShape floats = s;
  floats.dtype = Dtype::f32;
  portable_matmul()->prepare(floats, row, to);
}

void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  portable_matmul()->run(s, w, outputs, rows, row_bytes, out, ld);
}

} // namespace

const MatmulKernels* portable_int8_matmul() {
  static const MatmulKernels kernels{"INT8", prepared_bytes, prepare, run};
  return &kernels;
}

} // namespace zmlx::cpu
