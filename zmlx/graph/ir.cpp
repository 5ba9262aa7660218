// zmlx/graph/ir.cpp: building, changing, ordering and printing a graph.
#include "zmlx/graph/ir.h"

#include <algorithm>
#include <bit>
#include <sstream>
#include <stdexcept>

namespace zmlx {
namespace {

void print_value(std::ostream& out, const Graph& graph, Value v) {
  out << '%' << v.node;
  if (graph[v.node].outputs.size() > 1) {
    out << '.' << v.output;
  }
}

} // namespace

bool Constant::same(const Constant& other) const {
  // By bits: 0 and -0 differ, a NaN is itself.
  return id == other.id || (!table.empty() && table == other.table) ||
      (scalar && other.scalar &&
       std::bit_cast<uint64_t>(*scalar) == std::bit_cast<uint64_t>(*other.scalar));
}

int Graph::add(Node node) {
  nodes_.push_back(std::move(node));
  return size() - 1;
}

Value Graph::input(Type type) {
  Value v{
      add(
          {.kind = "input",
           .attrs = {},
           .inputs = {},
           .outputs = {type},
           .constant = {},
           .origin = {}}),
      0};
  inputs.push_back(v);
  return v;
}

void Graph::replace(Value from, Value to) {
  replace({{from, to}});
}

void Graph::replace(const std::vector<std::pair<Value, Value>>& pairs) {
  std::vector<std::vector<Value>> forward(nodes_.size());
  for (auto& [from, to] : pairs) {
    auto& targets = forward[static_cast<size_t>(from.node)];
    targets.resize((*this)[from.node].outputs.size());
    targets[static_cast<size_t>(from.output)] = to;
  }
  auto redirect = [&](Value& v) {
    for (;;) {
      auto& targets = forward[static_cast<size_t>(v.node)];
      if (targets.empty() || !targets[static_cast<size_t>(v.output)]) {
        return;
      }
      v = targets[static_cast<size_t>(v.output)];
    }
  };
  for (auto& node : nodes_) {
    std::for_each(node.inputs.begin(), node.inputs.end(), redirect);
  }
  std::for_each(outputs.begin(), outputs.end(), redirect);
  for (auto& v : tracked) {
    if (v) {
      redirect(v);
    }
  }
}

std::vector<int> Graph::order() const {
  enum : uint8_t { unseen, open, done };
  std::vector<uint8_t> state(nodes_.size(), unseen);
  std::vector<int> list;
  list.reserve(nodes_.size());
  std::vector<std::pair<int, size_t>> stack; // node, next input to visit
  for (auto& root : outputs) {
    if (state[static_cast<size_t>(root.node)] == unseen) {
      stack.emplace_back(root.node, 0);
      state[static_cast<size_t>(root.node)] = open;
    }
    while (!stack.empty()) {
      auto& [id, next] = stack.back();
      auto& in = (*this)[id].inputs;
      if (next == in.size()) {
        state[static_cast<size_t>(id)] = done;
        list.push_back(id);
        stack.pop_back();
        continue;
      }
      int child = in[next++].node;
      auto& seen = state[static_cast<size_t>(child)];
      if (seen == open) {
        throw std::logic_error("[graph] node %" + std::to_string(child) + " depends on itself.");
      }
      if (seen == unseen) {
        seen = open;
        stack.emplace_back(child, 0);
      }
    }
  }
  return list;
}

std::vector<int> Graph::prune() {
  auto needed = order();
  std::vector<int> renamed(nodes_.size(), -1);
  std::vector<Node> kept;
  kept.reserve(needed.size() + inputs.size());
  auto keep = [&](int id) {
    if (renamed[static_cast<size_t>(id)] < 0) {
      renamed[static_cast<size_t>(id)] = static_cast<int>(kept.size());
      kept.push_back(std::move(nodes_[static_cast<size_t>(id)]));
    }
  };
  for (auto& v : inputs) {
    keep(v.node);
  }
  for (int id : needed) {
    if (nodes_[static_cast<size_t>(id)].kind == "constant") {
      keep(id);
    }
  }
  for (int id : needed) {
    keep(id);
  }
  auto rename = [&](Value& v) {
    v.node = v ? renamed[static_cast<size_t>(v.node)] : -1;
    v.output = v ? v.output : 0;
  };
  for (auto& node : kept) {
    std::for_each(node.inputs.begin(), node.inputs.end(), rename);
  }
  std::for_each(inputs.begin(), inputs.end(), rename);
  std::for_each(outputs.begin(), outputs.end(), rename);
  std::for_each(tracked.begin(), tracked.end(), rename);
  nodes_ = std::move(kept);
  return renamed;
}

std::vector<std::vector<int>> Graph::users() const {
  std::vector<std::vector<int>> list(nodes_.size());
  for (int id = 0; id < size(); ++id) {
    for (auto& v : (*this)[id].inputs) {
      auto& of = list[static_cast<size_t>(v.node)];
      if (of.empty() || of.back() != id) {
        of.push_back(id);
      }
    }
  }
  return list;
}

std::string to_string(const Graph& graph) {
  std::ostringstream out;
  for (int id = 0; id < graph.size(); ++id) {
    auto& node = graph[id];
    out << '%' << id << " = " << node.kind;
    if (node.constant && node.constant->scalar) {
      out << ' ' << *node.constant->scalar;
    }
    const char* separator = "(";
    for (auto& v : node.inputs) {
      out << separator;
      print_value(out, graph, v);
      separator = ", ";
    }
    out << (node.inputs.empty() ? "" : ")");
    if (node.attrs.begin() != node.attrs.end()) {
      out << " {" << to_string(node.attrs) << '}';
    }
    separator = " : ";
    for (auto& type : node.outputs) {
      out << separator << to_string(type);
      separator = ", ";
    }
    out << '\n';
  }
  const char* separator = "return ";
  for (auto& v : graph.outputs) {
    out << separator;
    print_value(out, graph, v);
    separator = ", ";
  }
  out << '\n';
  return out.str();
}

} // namespace zmlx
