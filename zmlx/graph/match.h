// zmlx/graph/match.h: finding one graph inside another: loosely by kinds and edges, then exactly,
// node by node.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "zmlx/graph/ir.h"

namespace zmlx {

/// A small canonical graph to look for; its inputs are the variables, its outputs the roots.
struct Sought {
  explicit Sought(Graph canonical);

  Graph graph;
  /// The outputs without a Reshape on top: next to another Reshape it would have merged.
  std::vector<Value> roots;
  /// By node: whether it depends on the first variable. Work on that is what a rewrite saves, so
  /// nobody else may need it; the rest (positions, masks, indices) may be shared with others.
  std::vector<bool> owned;
  /// The root whose inputs reach the most nodes: matching starts there.
  int anchor = 0;
};

/// A graph to search in, with what the search needs to know of all of it.
struct Haystack {
  explicit Haystack(const Graph& graph);

  const Graph& graph;
  std::vector<std::vector<int>> users;
  std::vector<bool> is_output; // by node
  std::vector<std::pair<std::string_view, std::vector<int>>> by_kind;

  const std::vector<int>& of_kind(std::string_view kind) const;
};

/// What a loose match found.
class Match {
 public:
  Match(const Sought& sought, const Haystack& haystack);

  /// Type of the value bound to a variable.
  const Type& type(size_t variable) const;
  /// Whether the variable is bound to a constant.
  bool is_constant(size_t variable) const;
  size_t variables() const;
  /// The i-th matched node of this kind, in the order of the traced `find`, inputs first; throws
  /// std::out_of_range if none.
  const Node& node(std::string_view kind, int index = 0) const;
  bool has(std::string_view kind) const;
  /// Value of the i-th one-element constant, in the order in which the traced `find` reaches them.
  double scalar(int index) const;

  /// The graph's value for a value of the sought graph.
  Value at(Value sought) const;

 private:
  friend class Search;
  const Sought* sought_;
  const Haystack* haystack_;
  std::vector<Value> found_; // by node of the sought graph: its output 0, or the bound value
};

/// Calls accept(match) for loose matches whose anchor root is a value of node `candidate`, until it
/// returns true; returns whether it did.
bool find_match(
    const Sought& sought,
    const Haystack& haystack,
    int candidate,
    const std::function<bool(const Match&)>& accept);

/// Whether `exact`, with its variables bound to `variables`, is the graph behind `roots` node by
/// node: kinds, attributes, types, the values of constants. Fills `nodes` with the ids of the
/// graph's nodes, by node of `exact` (-1: none).
bool same_graph(
    const Sought& exact,
    const Graph& graph,
    const std::vector<Value>& variables,
    const std::vector<Value>& roots,
    std::vector<int>& nodes);

} // namespace zmlx
