// zmlx/kernel/msl/program.h: a kernel written as the body of a Metal function, as whole programs
// for Metal, the CPU and CUDA. Knows nothing of MLX.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "zmlx/runtime/tensor.h"

namespace zmlx::msl {

/// What somebody wrote.
struct Source {
  std::string name = "kernel";
  std::vector<std::string> inputs{};
  std::vector<std::string> outputs{};
  std::string body{};
  std::string header{};
  bool atomic_outputs = false;
};

/// A template argument: a type, a truth value or a whole number.
using Argument = std::variant<Dtype, bool, int64_t>;

/// What one set of dtypes asks for.
struct Types {
  struct Input {
    Dtype dtype;
    int rank; // 0: a number, not a pointer
  };
  std::vector<Input> inputs{};
  std::vector<Dtype> outputs{};
  std::vector<std::pair<std::string, Argument>> arguments{};
};

/// What of an input's view the body names.
struct View {
  bool shape, strides, rank;
};

struct Program {
  std::string metal;
  std::string cpp; // extern "C" void zmlx_run(const Launch*, int64_t begin, int64_t end)
  /// __global__ void metal::zmlx_kernel: Extents of grid and threadgroup; for each input a Pointer
  /// and, for each axis, its extent and stride where `views` says so; a Pointer to each output.
  std::string cuda;
  std::vector<View> views; // of each input
  bool together = false; // threads of a group wait for each other
  bool in_order = false; // sums of floats by atomics: the order of threadgroups shows
};

/// Throws std::invalid_argument with the line for what is not supported, and for wrong names.
Program program(const Source& source, const Types& types);

/// The mistakes in the author's own lines that a compiler's log tells of; "" where there is none.
std::string explained(const Source& source, const std::string& log);

/// What runtime/metal_kernel.cpp hands to zmlx_run; host.h has the same.
struct Launch {
  const void* const* in;
  void* const* out;
  const int* const* shapes;
  const int64_t* const* strides;
  const int* ranks;
  uint32_t grid[3];
  uint32_t group[3];
  char* stacks;
  size_t stack_bytes;
};
using Run = void (*)(const Launch*, int64_t begin, int64_t end);

} // namespace zmlx::msl
