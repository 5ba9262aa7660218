// zmlx/patterns/linears.h: rewrites of linear layers that are no patterns, as they have any number
// of roots.
#pragma once

#include "zmlx/graph/ir.h"

namespace zmlx {

/// A linear layer works on the last axis alone: moves a Reshape of its result that leaves that axis
/// to its input, where it meets the Reshape that MLX put there for an unquantised product. Returns
/// the number of layers moved.
int lift_linears(Graph& graph);

/// Merges linear layers with equal first inputs and attributes, no residual and constant weights
/// into one with several outputs. Returns the number of layers made.
int merge_linears(Graph& graph);

/// A pass runs before the patterns of its stage, under its name.
struct Pass {
  const char* name;
  int stage;
  int (*run)(Graph&);
};
constexpr Pass passes[] = {{"lift_linears", 1, lift_linears}, {"merge_linears", 2, merge_linears}};

} // namespace zmlx
