// zmlx/graph/compiled.h: seeing through the one node that mx::compile makes of many elementwise
// ones.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "zmlx/ops/op.h"

namespace zmlx {

/// One elementwise operation inside a Compiled node.
struct Step {
  std::string kind;
  Dtype dtype;
  std::vector<int> inputs; // of all values: first the node's inputs, then the steps
};

/// The steps of a Compiled node with `inputs` inputs and one output, from its library's name; the
/// last one is the output. Nothing when the name does not have the expected form.
std::optional<std::vector<Step>> steps_of(std::string_view library, int inputs);

/// The elementwise operation of that kind as a lazy array; throws std::invalid_argument for an
/// unknown kind.
mx::array elementwise(std::string_view kind, const Arrays& inputs, mx::Dtype dtype);

} // namespace zmlx
