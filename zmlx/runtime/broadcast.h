// zmlx/runtime/broadcast.h: arrays that broadcast: their common shape, how each lies in memory, and
// what goes back to each.
#pragma once

#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx {

namespace mx = mlx::core;

/// Throws std::invalid_argument("[name] shapes must broadcast but got ...").
mx::Shape common_shape(const std::string& name, const std::vector<mx::array>& inputs);

/// The inverse of broadcasting, for gradients: summed where `shape` has 1 or no axis, and repeated
/// where x has 1.
mx::array fitted(mx::array x, const mx::Shape& shape, mx::StreamOrDevice s);

/// Inputs of a vmap with the mapped axes in front, so that they still broadcast.
std::vector<mx::array>
batched(const std::vector<mx::array>& inputs, const std::vector<int>& axes, mx::StreamOrDevice s);

/// How one input lies in memory: its strides along the axes of the common shape, in elements.
using Strides = std::vector<int64_t>;

/// The strides of an array that is broadcast to `shape`.
Strides strides_in(const Shape& shape, const mx::array& x);

struct Axes {
  std::vector<int64_t> extents;
  std::vector<Strides> strides; // of each input
};

/// Axes of extent 1 dropped, and neighbours joined that all inputs run through evenly.
Axes joined(const Shape& shape, const std::vector<Strides>& strides);

} // namespace zmlx
