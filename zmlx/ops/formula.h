// zmlx/ops/formula.h: ops that are written in the kernel language (docs/authoring.md): a value for
// Op::cuda that serves Metal, too. What prints and runs it is runtime/formula.cpp.
#pragma once

#include "mlx/utils.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// An input of a formula: an op's input, or a part of its last axis.
struct FormulaInput {
  std::string name;
  int input;
  int64_t begin = 0;
  int64_t length = -1; // -1: up to the end
};

/// An op's only output as an expression of inputs that broadcast.
struct Formula {
  std::string text; // empty: there is no kernel
  std::vector<FormulaInput> inputs; // those that the op was not given are left out
  std::vector<std::pair<std::string, double>> numbers{}; // attributes that the text uses by name
};

/// Op::cuda of an op with a formula: its own kernel where it has one, else the formula's.
struct FormulaKernel {
  std::string op; // named in errors
  std::function<Formula(const Types& in, const Attrs&)> formula;
  decltype(Op::cuda) own{};

  cuda::Kernel operator()(
      const Types& in,
      const Types& out,
      const Attrs& attrs,
      const cuda::Device& device) const;
  /// Whether the formula gives a kernel for these inputs, which have axes and elements.
  bool fits(const Types& in, const Attrs& attrs) const;
  /// The formula's CUDA kernel.
  cuda::Kernel
  for_cuda(const Types& in, const Type& out, const Attrs& attrs, const cuda::Device& device) const;
  /// Runs it on row-contiguous inputs as a Metal kernel.
  void run_metal(const Arrays& inputs, Arrays& outputs, const Attrs& attrs, const mx::Stream& s)
      const;
  /// The same in plain MLX: what the kernels compute.
  mx::array graph(const Arrays& inputs, const Type& out, const Attrs& attrs) const;
};

/// The op's formula, or nullptr.
inline const FormulaKernel* formula_of(const Op& op) {
  return op.cuda.target<FormulaKernel>();
}

} // namespace zmlx
