// zmlx/patterns/pattern.h: a rewrite rule: `find` is plain MLX code, `put` is what takes its place. One file a pattern.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "zmlx/graph/ir.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// What a loose match found: the graph value bound to each variable and the graph node behind each node of `find`.
class Match {
 public:
  /// Type of the value bound to a variable.
  const Type& type(size_t variable) const;
  /// The i-th matched node of this kind, in the order in which `find` builds them; throws std::out_of_range if none.
  const Node& node(std::string_view kind, int index = 0) const;
  /// Value of the i-th matched one-element constant, in the order in which `find` uses them.
  double scalar(int index) const;
};

struct Pattern {
  std::string name;
  /// Stage 0 undoes MLX's decomposition (recompose), stage 1 and later build on what earlier stages put.
  int stage = 0;
  /// The left side: MLX code (and our ops) on the variables; one or more roots.
  std::function<Arrays(const Arrays& variables, const Attrs&)> find;
  /// Example variables and attributes to trace `find` on for the loose match: one entry a structural variant
  /// (float32 builds no casts, one token may build no transposes, ...).
  struct Example {
    Arrays variables;
    Attrs attrs;
  };
  std::function<std::vector<Example>()> examples;
  /// Attributes for the proof, read from a loose match. `find` is traced again with them on the bound types, and the
  /// rewrite happens only if that gives the matched graph node by node.
  std::function<Attrs(const Match&)> attrs;
  /// The right side: one op call; its outputs replace the roots in order.
  std::function<Arrays(const Arrays& variables, const Attrs&)> put;
};

} // namespace zmlx
