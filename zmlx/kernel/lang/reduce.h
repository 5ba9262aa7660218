// zmlx/kernel/lang/reduce.h: reductions of expressions: their rows, and kernels as text.
#pragma once

#include <string>
#include <string_view>

#include "zmlx/kernel/lang/statements.h"

namespace zmlx::lang {

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
/// What is neutral, in the type `type` of accumulators that hold values of `dtype`.
std::string
neutral(const Reduction& reduction, Dtype dtype, const std::string& type, const Spelling& in);

/// C++ functions over accumulators: zmlx_start sets n of them, zmlx_rows adds a run of n elements
/// to one, zmlx_columns adds n elements to as many, zmlx_merge adds others, zmlx_finish writes n
/// results of `count` elements each.
Text reduce_text(const ReduceText& kernel);

} // namespace zmlx::lang
