// zmlx/kernel/lang/reduce.h: reductions of expressions: their rows, and kernels as text.
#pragma once

#include <string>
#include <string_view>

#include "zmlx/kernel/lang/print.h"

namespace zmlx::lang {

struct Reduction {
  const char* name;
  const char* combine; // of $0 and $1
  bool adds; // float values add up in double precision, small integers in 32 bits
  bool empty; // whether there is a result of no elements
};

/// Of "sum", "mean", "prod", "max" or "min"; throws std::invalid_argument for others.
const Reduction& reduction_named(std::string_view name);

struct ReduceText {
  const Program& program; // of one result
  std::vector<Dtype> in;
  Dtype out;
  const Reduction& reduction;
};

/// Bytes of an accumulator.
size_t accumulator_bytes(const ReduceText& kernel);

/// C++ functions over accumulators: zmlx_start sets n of them, zmlx_rows adds a run of n elements
/// to one, zmlx_columns adds n elements to as many, zmlx_merge adds others, zmlx_finish writes n
/// results of `count` elements each.
Text reduce_text(const ReduceText& kernel);

} // namespace zmlx::lang
