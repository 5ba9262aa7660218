// zmlx/runtime/metal_kernel.h: kernels written as bodies of Metal functions, as nodes of MLX's lazy
// graph, on every device.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/msl/program.h"

namespace zmlx {

namespace mx = mlx::core;

/// What one call says besides its inputs.
struct MetalCall {
  std::vector<mx::Shape> output_shapes{};
  std::vector<mx::Dtype> output_dtypes{};
  std::array<int, 3> grid{1, 1, 1}; // threads
  std::array<int, 3> threadgroup{1, 1, 1};
  std::vector<std::pair<std::string, std::variant<bool, int, mx::Dtype>>>
      arguments{}; // a template's
  std::optional<float> init_value{};
};

/// As mx::fast::metal_kernel's result; copies share it.
class MetalKernel {
 public:
  explicit MetalKernel(msl::Source source, bool ensure_row_contiguous = true);

  /// Lazy outputs. Compiles, and throws std::invalid_argument with the line for what does not.
  /// Throws std::runtime_error where the CPU has no compiler.
  std::vector<mx::array> operator()(
      const std::vector<mx::array>& inputs,
      const MetalCall& call,
      mx::StreamOrDevice s = {}) const;

  /// The whole program in "metal", "cpp" or "cuda" for such a call.
  std::string source(
      const std::string& language,
      const std::vector<mx::array>& inputs,
      const MetalCall& call) const;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

} // namespace zmlx
