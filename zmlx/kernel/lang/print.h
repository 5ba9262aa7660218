// zmlx/kernel/lang/print.h: kernels as text in each language.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zmlx/kernel/lang/lower.h"

namespace zmlx::lang {

enum class Language : uint8_t { cpp, cuda, metal };

/// Of "cpp", "cuda" or "metal"; throws std::invalid_argument for others.
Language language_named(std::string_view name);

struct ElementwiseText {
  const Program& program;
  std::vector<Dtype> in; // as stored
  std::vector<Dtype> out;
  size_t numbers = 0; // the last of the inputs, of a row kernel for a GPU, that are passed by value
};

/// How CUDA kernels find an input's element.
enum class Access : uint8_t { contiguous, constant, strided };

struct Text {
  std::string prelude; // what the language's kernels build on
  std::string kernel;
};

/// C++: `extern "C" void zmlx_run(const void* const* in, void* const* out, int64_t n)` over
/// contiguous runs.
Text cpp_text(const ElementwiseText& kernel);

/// CUDA, behind kernel/cuda/base.cuh: `template <typename Index> __global__ void zmlx_run(...)` of
/// a Pointer for each input and output, the number of elements, the extents of all axes but the
/// first, then the strides of each strided input, in elements, all of them Extents.
Text cuda_text(const ElementwiseText& kernel, const std::vector<Access>& access, int rank);

/// Elements that a CUDA kernel reads and writes at a time, given which inputs lie in a row.
int pack_size(const ElementwiseText& kernel, const std::vector<bool>& packed);

/// Metal: the body that mx.fast.metal_kernel takes for inputs in0, in1, ... of the common shape
/// and any strides, and contiguous outputs out0, ...; a thread an element.
Text metal_text(const ElementwiseText& kernel);

} // namespace zmlx::lang
