// zmlx/runtime/map_reduce.h: an expression of arrays, reduced over axes in the same pass.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "zmlx/runtime/elementwise.h"

namespace zmlx {

/// Sum, mean, prod, max or min of an elementwise kernel's only output; copies share it.
class MapReduce {
 public:
  /// Throws std::invalid_argument for another `op`.
  MapReduce(ElementwiseSpec map, const std::string& op);

  /// The lazy result, of the dtype that MLX's own reduction of the map would have; all axes by
  /// default, negative ones count from the end of the common shape. Nothing of the map is stored,
  /// save for gradients of max, min and prod. Throws std::invalid_argument in words for what
  /// Elementwise refuses, a wrong axis, and max or min of nothing.
  mx::array operator()(
      const std::vector<mx::array>& inputs,
      const std::optional<std::vector<int>>& axes = {},
      bool keepdims = false,
      const std::vector<bool>& weak = {},
      mx::StreamOrDevice s = {}) const;

  /// The kernel's text in C++ for inputs of these dtypes.
  std::string source(const std::vector<Dtype>& dtypes) const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

} // namespace zmlx
