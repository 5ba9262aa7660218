// zmlx/graph/rewrite.h: patterns applied to a graph, stage by stage, until none fits.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "zmlx/graph/ir.h"
#include "zmlx/ops/op.h"

namespace zmlx {

struct RewriteOptions {
  std::vector<std::string> include; // names of patterns; empty means all
  std::vector<std::string> exclude;
  bool exact = false; // ask our ops to round wherever the unfused graph does
  /// "int8": ops that multiply by weights of a fitting format round their activations; else
  /// "exact".
  std::string activations = "exact";
  bool fold = true; // evaluate now what depends on no input
  bool merge = true; // merge equal nodes; without it only those that depend on no input
};

struct RewriteReport {
  std::map<std::string, int> fired; // by pattern
  int nodes_before = 0; // without inputs and constants
  int nodes_after = 0;
  std::map<std::string, int> int8; // by kind: ops with 8-bit activations
  std::map<std::string, int> exact; // by kind and mode: where int8 was asked for and does not fit
  std::map<std::string, int> left; // by kind: nodes that are neither views nor ours
};

/// Canonicalises and rewrites the graph. Throws std::invalid_argument for a name that is no
/// pattern.
RewriteReport rewrite(Graph& graph, const RewriteOptions& options = {});

/// Rewrites MLX's lazy graph below `outputs` in place, so that every reference to an array sees it,
/// and returns the outputs. Arrays inside that others hold stay valid.
Arrays
rewrite(const Arrays& outputs, const RewriteOptions& options = {}, RewriteReport* report = nullptr);

/// Names that `include` and `exclude` know, sorted.
std::vector<std::string> pattern_names();

} // namespace zmlx
