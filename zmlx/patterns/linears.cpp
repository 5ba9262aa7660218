// zmlx/patterns/linears.cpp: lifting reshapes out of linear layers, and merging layers that read
// the same input.
#include "zmlx/patterns/linears.h"

#include <algorithm>
#include <map>

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

int lift_linears(Graph& graph) {
  auto users = graph.users();
  std::vector<bool> is_output(users.size(), false);
  for (auto v : graph.outputs) {
    is_output[static_cast<size_t>(v.node)] = true;
  }
  std::vector<std::pair<Value, Value>> pairs;
  int count = graph.size();
  for (int id = 0; id < count; ++id) {
    auto& of = users[static_cast<size_t>(id)];
    bool plain = graph[id].kind == "linear" && graph[id].attrs.integer("outputs") == 1 &&
        !graph[id].attrs.integer("residual", 0);
    if (!plain || of.empty() || is_output[static_cast<size_t>(id)]) {
      continue;
    }
    auto type = graph[of[0]].outputs[0];
    auto& from = graph[id].outputs[0].shape;
    bool alike = std::all_of(of.begin(), of.end(), [&](int user) {
      return graph[user].kind == "Reshape" && graph[user].outputs[0] == type;
    });
    if (!alike || type.shape.rank() == 0 || type.shape[-1] != from[-1]) {
      continue;
    }
    Node view;
    view.kind = "Reshape";
    view.inputs = {graph[id].inputs[0]};
    view.outputs = {type};
    view.outputs[0].shape[-1] = graph.type(view.inputs[0]).shape[-1];
    // Worth it where it undoes a Reshape below, or joins the one that merges attention's heads;
    // elsewhere it would only move the heads' split.
    auto& below = graph[view.inputs[0].node];
    if (below.kind != "Reshape") {
      continue;
    }
    auto& inner = graph.type(below.inputs[0]);
    bool merges_heads = inner.shape.rank() > 0 && inner.shape[-1] != view.outputs[0].shape[-1];
    if (!merges_heads && !(inner == view.outputs[0])) {
      continue;
    }
    Node lifted = graph[id];
    lifted.inputs[0] = {graph.add(std::move(view)), 0};
    lifted.outputs = {type};
    Value result{graph.add(std::move(lifted)), 0};
    for (int user : of) {
      pairs.emplace_back(Value{user, 0}, result);
    }
  }
  if (!pairs.empty()) {
    graph.replace(pairs);
    graph.prune();
  }
  return static_cast<int>(pairs.size());
}

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
