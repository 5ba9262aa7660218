// zmlx/graph/canonicalise.h: one spelling for graphs that compute the same: no no-ops, one kind of
// view, no duplicates.
#pragma once

#include <string_view>

#include "zmlx/graph/ir.h"

namespace zmlx {

/// Whether each element of the output depends on one element of each input. After canonicalise()
/// the inputs of such a node may be smaller than its output: the broadcast is implied, as in NumPy.
bool is_elementwise(std::string_view kind);

/// Whether the two inputs of this kind may be swapped.
bool is_commutative(std::string_view kind);

struct CanonicaliseOptions {
  /// Merge equal nodes. Without it only those merge that depend on no input.
  bool merge_all = true;
};

/// Rewrites the graph by the rows of rules in canonicalise.cpp, merges equal nodes and prunes.
/// Every value that stays is one that was there before.
void canonicalise(Graph& graph, const CanonicaliseOptions& options = {});

/// Prints the graph to stderr under ZMLX_DEBUG=1.
void debug_print(std::string_view pass, const Graph& graph);

} // namespace zmlx
