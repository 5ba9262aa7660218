// zmlx/patterns/rewrite_lazy.cpp: what rewrite() made of a graph, written back into MLX's lazy
// arrays.
#include <functional>
#include <optional>
#include <unordered_set>

#include "mlx/ops.h"
#include "zmlx/graph/canonicalise.h"
#include "zmlx/graph/capture.h"
#include "zmlx/graph/rewrite.h"

namespace zmlx {
namespace {

/// Makes the arrays `olds` compute what `fresh` computes, as outputs of one node. Empty places keep
/// the new array.
void overwrite(std::vector<std::optional<mx::array>>& olds, Arrays& fresh) {
  Arrays outputs;
  for (size_t i = 0; i < fresh.size(); ++i) {
    outputs.push_back(olds[i] ? *olds[i] : fresh[i]);
  }
  bool one_node = fresh.size() > 1 && !fresh[0].siblings().empty();
  for (size_t i = 0; i < fresh.size(); ++i) {
    if (olds[i]) {
      auto from = fresh[i].has_primitive() ? fresh[i] : mx::copy(fresh[i]);
      outputs[i].inputs() = from.inputs();
      outputs[i].primitive_ptr() = from.primitive_ptr();
    }
  }
  for (size_t i = 0; i < fresh.size() && one_node; ++i) {
    auto siblings = outputs;
    siblings.erase(siblings.begin() + static_cast<std::ptrdiff_t>(i));
    fresh[i].siblings().clear();
    outputs[i].set_siblings(std::move(siblings), static_cast<uint16_t>(i));
  }
  fresh = std::move(outputs);
}

} // namespace

Arrays rewrite(const Arrays& outputs, const RewriteOptions& options, RewriteReport* report) {
  auto [graph, arrays] = capture_with_arrays(outputs);
  std::unordered_set<const void*> origins;
  for (int id = 0; id < graph.size(); ++id) {
    if (graph[id].origin) {
      origins.insert(graph[id].origin.get());
    }
  }
  for (auto& [value, array] : arrays) {
    graph.tracked.push_back(value);
  }
  auto quick = options;
  quick.fold = false;
  quick.merge = false; // each array stays the result of its own node
  auto result = rewrite(graph, quick);
  std::vector<std::vector<std::optional<mx::array>>> known(static_cast<size_t>(graph.size()));
  for (int id = 0; id < graph.size(); ++id) {
    known[static_cast<size_t>(id)].resize(graph[id].outputs.size());
  }
  for (size_t i = 0; i < arrays.size(); ++i) {
    if (auto v = graph.tracked[i]) {
      known[static_cast<size_t>(v.node)][static_cast<size_t>(v.output)] = arrays[i].second;
    }
  }
  // Inside what was one Compiled node values have no array: made when somebody needs one.
  std::function<mx::array(Value)> array_at = [&, &graph = graph](Value v) {
    auto& slot = known[static_cast<size_t>(v.node)][static_cast<size_t>(v.output)];
    if (!slot) {
      Arrays in;
      for (auto input : graph[v.node].inputs) {
        in.push_back(array_at(input));
      }
      slot = emit_node(graph[v.node], in).at(static_cast<size_t>(v.output));
    }
    return *slot;
  };
  for (int id : graph.order()) {
    auto& node = graph[id];
    auto& olds = known[static_cast<size_t>(id)];
    if (node.constant) {
      olds[0] = array_of(*node.constant);
      continue;
    }
    bool was_there = node.origin ? origins.contains(node.origin.get()) : is_elementwise(node.kind);
    if (was_there) {
      continue;
    }
    Arrays in;
    for (auto v : node.inputs) {
      in.push_back(array_at(v));
    }
    auto fresh = emit_node(node, in);
    overwrite(olds, fresh);
    for (size_t i = 0; i < fresh.size(); ++i) {
      olds[i] = fresh[i];
    }
  }
  if (report) {
    *report = std::move(result);
  }
  return outputs;
}

} // namespace zmlx
