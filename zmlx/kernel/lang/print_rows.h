// zmlx/kernel/lang/print_rows.h: row kernels as text in each language.
#pragma once

#include <tuple>

#include "zmlx/kernel/lang/print.h"
#include "zmlx/kernel/lang/rows.h"

namespace zmlx::lang {

/// C++: `extern "C" void zmlx_rows(const void* const* in, const int64_t* in_steps, void* const*
/// out, const int64_t* out_steps, int64_t rows, int64_t n, char* kept)` over rows of n contiguous
/// elements, steps in bytes from row to row; `kept` has kept_bytes() of memory.
Text cpp_rows_text(const ElementwiseText& kernel);
size_t kept_bytes(const Program& program, int64_t n);

/// How a GPU kernel goes over rows: whether it keeps them in registers, the axes that count rows,
/// and which inputs' elements are not next to each other.
struct RowAccess {
  bool registers = true;
  int rank = 1;
  std::vector<bool> strided{};
  bool operator<(const RowAccess& other) const {
    return std::tie(registers, rank, strided) <
        std::tie(other.registers, other.rank, other.strided);
  }
};

/// CUDA, behind kernel/cuda/base.cuh: `template <int Threads, int Items> __global__ void
/// zmlx_rows(...)`, Threads a row (32: eight rows a block, else a row a block) with Items elements
/// each, or all in a loop where rows are not kept in registers. Its arguments: a Pointer for each
/// input and output (a float for a number), then Extents: the rows, a row's length, the extents of
/// the rows' axes but the first, and for each input its strides along those axes and, if it is
/// strided, the last.
Text cuda_rows_text(const ElementwiseText& kernel, const RowAccess& access);
/// Values that a thread holds for each element while rows are in registers.
int kept_values(const Program& program);

/// Metal: the body that mx.fast.metal_kernel takes for inputs of the common shape and any strides,
/// and contiguous outputs; a threadgroup of whole SIMD groups a row. Numbers have no axes.
Text metal_rows_text(const ElementwiseText& kernel);

} // namespace zmlx::lang
