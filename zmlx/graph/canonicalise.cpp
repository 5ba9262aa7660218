// zmlx/graph/canonicalise.cpp: the rules of canonicalise(), one row each, and the sweep that
// applies them.
#include "zmlx/graph/canonicalise.h"

#include <cstdlib>
#include <functional>
#include <iostream>
#include <unordered_map>
#include <unordered_set>

namespace zmlx {
namespace {

/// A rule changes node `id` in place, or returns the value that replaces its only output.
using Rule = Value (*)(Graph&, int id);

struct Row {
  std::string_view kind; // "" for elementwise kinds
  Rule rule;
};

Value first_input(Graph& graph, int id) {
  return graph[id].inputs[0];
}

Value to_reshape(Graph& graph, int id) {
  graph[id].kind = "Reshape";
  graph[id].attrs = {};
  return {};
}

Value drop_if_same_type(Graph& graph, int id) {
  auto& node = graph[id];
  return graph.type(node.inputs[0]) == node.outputs[0] ? node.inputs[0] : Value{};
}

/// The node behind a value if it has this kind.
const Node* producer(const Graph& graph, Value v, std::string_view kind) {
  auto& node = graph[v.node];
  return node.kind == kind ? &node : nullptr;
}

Value skip_inner_reshape(Graph& graph, int id) {
  if (auto* inner = producer(graph, graph[id].inputs[0], "Reshape")) {
    graph[id].inputs = {inner->inputs[0]};
  }
  return {};
}

/// Whether a reshape from `from` to `to` only puts ones in front: broadcasting does the same.
bool adds_leading_ones(const Shape& from, const Shape& to) {
  int extra = to.rank() - from.rank();
  if (extra < 0) {
    return false;
  }
  for (int i = 0; i < to.rank(); ++i) {
    if (to[i] != (i < extra ? 1 : from[i - extra])) {
      return false;
    }
  }
  return true;
}

/// Inputs of a node that broadcasts need no Broadcast, nor a Reshape that adds leading ones to an
/// array that is repeated.
Value skip_broadcasts(Graph& graph, int id) {
  auto size = graph[id].outputs[0].shape.size();
  for (auto& v : graph[id].inputs) {
    for (;;) {
      auto& node = graph[v.node];
      bool skip = node.kind == "Broadcast" ||
          (node.kind == "Reshape" && node.outputs[0].shape.size() < size &&
           adds_leading_ones(graph.type(node.inputs[0]).shape, node.outputs[0].shape));
      if (!skip) {
        break;
      }
      v = node.inputs[0];
    }
  }
  return {};
}

Value broadcast_once(Graph& graph, int id) {
  // More inputs only say the shape, which the output type does too.
  graph[id].inputs.resize(1);
  skip_broadcasts(graph, id);
  return {};
}

/// Composes with an inner Transpose; one that moves only axes of extent one is a Reshape.
Value transpose(Graph& graph, int id) {
  auto& node = graph[id];
  auto axes = node.attrs.list("axes");
  if (auto* inner = producer(graph, node.inputs[0], "Transpose")) {
    for (auto& axis : axes) {
      axis = inner->attrs.list("axes")[static_cast<size_t>(axis)];
    }
    node.inputs = {inner->inputs[0]};
    node.attrs.set("axes", axes);
  }
  auto& shape = graph.type(node.inputs[0]).shape;
  int64_t last = -1;
  for (auto axis : axes) {
    if (shape[static_cast<int>(axis)] == 1) {
      continue;
    }
    if (axis < last) {
      return {};
    }
    last = axis;
  }
  return to_reshape(graph, id);
}

Value drop_single_concatenate(Graph& graph, int id) {
  return graph[id].inputs.size() == 1 ? graph[id].inputs[0] : Value{};
}

// In order: later rows see what earlier ones made of the node.
constexpr Row rows[] = {
    {"StopGradient", first_input},
    {"Copy", first_input},
    {"Contiguous", first_input},
    {"Squeeze", to_reshape},
    {"ExpandDims", to_reshape},
    {"Flatten", to_reshape},
    {"Unflatten", to_reshape},
    {"Transpose", transpose},
    {"Reshape", skip_inner_reshape},
    {"Reshape", drop_if_same_type},
    {"AsType", drop_if_same_type},
    {"Slice", drop_if_same_type},
    {"Broadcast", broadcast_once},
    {"Broadcast", drop_if_same_type},
    {"Concatenate", drop_single_concatenate},
    {"", skip_broadcasts},
};

// A kind has at most a few rows: they are looked up once and kept by kind.
const std::vector<Rule>& rules_of(const std::string& kind) {
  thread_local std::unordered_map<std::string, std::vector<Rule>> table;
  auto [it, fresh] = table.try_emplace(kind);
  if (fresh) {
    for (auto& row : rows) {
      if (row.kind.empty() ? is_elementwise(kind) : row.kind == kind) {
        it->second.push_back(row.rule);
      }
    }
  }
  return it->second;
}

/// Applies rules until the node keeps its kind: a Squeeze becomes a Reshape, then the rows of
/// Reshape apply.
Value apply_rules(Graph& graph, int id) {
  for (;;) {
    auto kind = graph[id].kind;
    for (auto rule : rules_of(kind)) {
      if (auto v = rule(graph, id)) {
        return v;
      }
      if (graph[id].kind != kind) {
        break;
      }
    }
    if (graph[id].kind == kind) {
      return {};
    }
  }
}

size_t hash_of(const Node& node) {
  size_t h = std::hash<std::string_view>{}(node.kind);
  auto mix = [&](size_t x) { h = (h ^ x) * 0x9e3779b97f4a7c15u + (h >> 29); };
  for (auto& v : node.inputs) {
    mix(static_cast<size_t>(v.node) * 8 + static_cast<size_t>(v.output));
  }
  for (int64_t d : node.outputs[0].shape) {
    mix(static_cast<size_t>(d));
  }
  if (node.constant) {
    mix(node.constant->scalar ? std::hash<double>{}(*node.constant->scalar) : node.constant->id);
  }
  return h;
}

bool same_constant(const Constant* a, const Constant* b) {
  return a && b ? a->same(*b) : a == b;
}

bool same_node(const Node& a, const Node& b) {
  return a.kind == b.kind && a.inputs == b.inputs && a.outputs == b.outputs && a.attrs == b.attrs &&
      same_constant(a.constant.get(), b.constant.get());
}

} // namespace

bool is_elementwise(std::string_view kind) {
  static const std::unordered_set<std::string_view> kinds = {
      "Abs",         "Add",        "ArcCos",       "ArcCosh",   "ArcSin",     "ArcSinh",
      "ArcTan",      "ArcTan2",    "ArcTanh",      "AsType",    "BitwiseAnd", "BitwiseInvert",
      "BitwiseOr",   "BitwiseXor", "Ceil",         "Cos",       "Cosh",       "Divide",
      "Equal",       "Erf",        "ErfInv",       "Exp",       "Expm1",      "Floor",
      "FloorDivide", "Greater",    "GreaterEqual", "LeftShift", "Less",       "LessEqual",
      "Log",         "Log10",      "Log1p",        "Log2",      "LogAddExp",  "LogicalAnd",
      "LogicalNot",  "LogicalOr",  "Maximum",      "Minimum",   "Multiply",   "NaNEqual",
      "Negative",    "NotEqual",   "Power",        "Remainder", "RightShift", "Round",
      "Rsqrt",       "Select",     "Sigmoid",      "Sign",      "Sin",        "Sinh",
      "Sqrt",        "Square",     "Subtract",     "Tan",       "Tanh"};
  return kinds.contains(kind);
}

bool is_commutative(std::string_view kind) {
  static const std::unordered_set<std::string_view> kinds = {
      "Add",
      "BitwiseAnd",
      "BitwiseOr",
      "BitwiseXor",
      "Equal",
      "LogAddExp",
      "LogicalAnd",
      "LogicalOr",
      "Maximum",
      "Minimum",
      "Multiply",
      "NaNEqual",
      "NotEqual"};
  return kinds.contains(kind);
}

void canonicalise(Graph& graph, const CanonicaliseOptions& options) {
  auto count = static_cast<size_t>(graph.size());
  std::vector<Value> forward(count);
  std::vector<bool> depends(count, false); // on an input of the graph
  std::unordered_multimap<size_t, int> seen;
  seen.reserve(count);
  auto find_equal = [&](int id) {
    auto h = hash_of(graph[id]);
    for (auto [it, end] = seen.equal_range(h); it != end; ++it) {
      if (same_node(graph[it->second], graph[id])) {
        return it->second;
      }
    }
    seen.emplace(h, id);
    return -1;
  };
  for (int id = 0; id < graph.size(); ++id) {
    auto i = static_cast<size_t>(id);
    if (graph[id].kind == "input") {
      depends[i] = true;
      continue;
    }
    for (auto& v : graph[id].inputs) {
      if (forward[static_cast<size_t>(v.node)]) {
        v = forward[static_cast<size_t>(v.node)];
      }
      depends[i] = depends[i] || depends[static_cast<size_t>(v.node)];
    }
    // A forwarded node has one output, so its id says which value is meant.
    if (graph[id].outputs.size() != 1) {
      continue;
    }
    forward[i] = apply_rules(graph, id);
    if (!forward[i] && (options.merge_all || !depends[i])) {
      forward[i] = {find_equal(id), 0};
    }
  }
  for (auto& v : graph.outputs) {
    if (forward[static_cast<size_t>(v.node)]) {
      v = forward[static_cast<size_t>(v.node)];
    }
  }
  for (auto& v : graph.tracked) {
    if (v && forward[static_cast<size_t>(v.node)]) {
      v = {};
    }
  }
  graph.prune();
}

void debug_print(std::string_view pass, const Graph& graph) {
  static const bool enabled = [] {
    auto* value = std::getenv("ZMLX_DEBUG");
    return value && std::string_view(value) == "1";
  }();
  if (enabled) {
    std::cerr << "--- " << pass << ": " << graph.size() << " nodes\n" << to_string(graph);
  }
}

} // namespace zmlx
