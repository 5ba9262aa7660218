// zmlx/runtime/elementwise.h: kernels written as expressions, as nodes of MLX's lazy graph:
// compiled once for each set of dtypes, differentiable to any order.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/lang/expr.h"
#include "zmlx/kernel/lang/lower.h"

namespace zmlx {

namespace mx = mlx::core;

/// What a kernel computes, for inputs of any dtypes and of shapes that broadcast.
struct ElementwiseSpec {
  std::string name = "kernel"; // in errors and printed graphs
  std::vector<std::string> inputs{};
  std::vector<lang::Expr> outputs{};
  /// What inputs are converted to before computing; floating results then keep the inputs' dtype.
  std::optional<Dtype> compute{};
  /// d(output 0)/d(input) times `g`, one for each input, in the inputs, `g` and the result `y`.
  /// Empty: derived.
  std::vector<lang::Expr> gradients{};
  /// outputs[i] gets the dtype of input like[i]; empty, or -1: the dtype that MLX would give.
  std::vector<int> like{};
  /// Whether outputs with one value for a row keep the last axis, of extent 1.
  bool keepdims = true;
};

/// An elementwise kernel or, where the expressions reduce rows, a row kernel (rowwise.h); copies
/// share it.
class Elementwise {
 public:
  explicit Elementwise(ElementwiseSpec spec);

  /// Lazy outputs. Inputs that are `weak` do not widen the result, as Python's numbers. Throws
  /// std::invalid_argument in words for a wrong number of inputs, shapes that do not broadcast,
  /// and dtypes without kernels.
  std::vector<mx::array> operator()(
      const std::vector<mx::array>& inputs,
      const std::vector<bool>& weak = {},
      mx::StreamOrDevice s = {}) const;

  /// The kernel's text in "cpp", "cuda" or "metal" for contiguous inputs of these dtypes.
  std::string source(const std::string& language, const std::vector<Dtype>& dtypes) const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

/// The kernel of one or several outputs: kernel("swiglu", {out[i] = gate[i] * sigmoid(gate[i]) *
/// up[i]}). Inputs are numbered in order of first use.
Elementwise kernel(std::string name, const std::vector<lang::Assignment>& outputs);

} // namespace zmlx
