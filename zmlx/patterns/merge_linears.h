// zmlx/patterns/merge_linears.h: linear layers that read the same input become one with several
// outputs.
#pragma once

#include "zmlx/graph/ir.h"

namespace zmlx {

/// Runs before the patterns of this stage.
constexpr int merge_linears_stage = 2;

/// Merges nodes `linear` with equal first inputs and attributes, no residual and constant weights;
/// returns the number of nodes made.
int merge_linears(Graph& graph);

} // namespace zmlx
