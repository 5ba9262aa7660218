// zmlx/patterns/merge_linears.cpp: the one rewrite with any number of roots, hence a pass and no
// pattern.
#include "zmlx/patterns/merge_linears.h"

#include <algorithm>
#include <map>

#include "zmlx/graph/canonicalise.h"

namespace zmlx {
namespace {

bool is_mergeable(const Graph& graph, const Node& node) {
  if (node.kind != "linear" || node.attrs.integer("norm", 0) || node.attrs.integer("residual", 0) ||
      node.attrs.integer("outputs") != 1) {
    return false;
  }
  // Constant weights also mean that no member depends on another.
  return std::all_of(node.inputs.begin() + 1, node.inputs.end(), [&](Value v) {
    return graph[v.node].kind == "constant";
  });
}

} // namespace

int merge_linears(Graph& graph) {
  std::map<Value, std::vector<int>> readers;
  for (int id = 0; id < graph.size(); ++id) {
    if (is_mergeable(graph, graph[id])) {
      readers[graph[id].inputs[0]].push_back(id);
    }
  }
  int made = 0;
  std::vector<std::pair<Value, Value>> pairs;
  for (auto& [x, ids] : readers) {
    while (ids.size() > 1) {
      auto& first = graph[ids[0]];
      auto rest = std::stable_partition(
          ids.begin(), ids.end(), [&](int id) { return graph[id].attrs == first.attrs; });
      if (rest - ids.begin() > 1) {
        Node merged;
        merged.kind = "linear";
        merged.attrs = first.attrs;
        merged.attrs.set("outputs", int64_t{rest - ids.begin()});
        merged.inputs = {x};
        for (auto it = ids.begin(); it != rest; ++it) {
          auto& node = graph[*it];
          merged.inputs.insert(merged.inputs.end(), node.inputs.begin() + 1, node.inputs.end());
          merged.outputs.push_back(node.outputs[0]);
        }
        int id = graph.add(std::move(merged));
        for (int i = 0; i < rest - ids.begin(); ++i) {
          pairs.emplace_back(Value{ids[static_cast<size_t>(i)], 0}, Value{id, i});
        }
        ++made;
      }
      ids.erase(ids.begin(), rest);
    }
  }
  if (made) {
    graph.replace(pairs);
    graph.prune();
  }
  return made;
}

} // namespace zmlx
