// zmlx/runtime/rowwise.h: kernels whose expressions reduce rows, the elements along the last axis,
// and use the results: one node of MLX's lazy graph, differentiable to any order.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/lang/lower.h"

namespace zmlx {

namespace mx = mlx::core;

struct ElementwiseSpec;

/// A row kernel; copies share it. Inputs whose last axis has extent 1, or that have no axis, have
/// one value for a row; so have outputs that are made of such values and of reductions alone.
class Rowwise {
 public:
  explicit Rowwise(ElementwiseSpec spec);

  /// As Elementwise; throws std::invalid_argument for inputs without axes, too, and for max and min
  /// of nothing.
  std::vector<mx::array> operator()(
      const std::vector<mx::array>& inputs,
      const std::vector<bool>& weak = {},
      mx::StreamOrDevice s = {}) const;

  /// The kernel's text for inputs of whole rows of these types.
  std::string source(const std::string& language, const std::vector<lang::Typed>& types) const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

} // namespace zmlx
