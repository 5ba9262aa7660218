// zmlx/kernel/cpu/matmul_kernels.h: the table of functions behind Matmul, one for each instruction
// set.
#pragma once

#include <vector>

#include "zmlx/kernel/cpu/matmul.h"

namespace zmlx::cpu {

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
};

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
};

/// Float32 arithmetic on any CPU, for every format and dtype; the best instruction set that Highway
/// finds.
const MatmulKernels* portable_matmul();
/// The same for each instruction set of this CPU, for tests. Not while other threads compute.
std::vector<const MatmulKernels*> portable_matmuls();
/// bf16 dot products, for bf16 activations and weights that are dense or of 2, 4 or 8 bits; nullptr
/// where the CPU or the build has none.
const MatmulKernels* bf16_matmul();
bool bf16_matmul_supports(const MatmulShape& shape);

} // namespace zmlx::cpu
