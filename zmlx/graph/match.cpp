// zmlx/graph/match.cpp: backtracking search for a small graph, and the comparison that proves it.
#include "zmlx/graph/match.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

#include "zmlx/graph/canonicalise.h"

namespace zmlx {
namespace {

bool is_leaf(const Node& node) {
  return node.kind == "input" || node.kind == "constant";
}

/// By node: whether `root` depends on it.
std::vector<bool> cone(const Graph& graph, int root) {
  std::vector<bool> in(static_cast<size_t>(graph.size()), false);
  in[static_cast<size_t>(root)] = true;
  for (int id = root; id >= 0; --id) {
    if (in[static_cast<size_t>(id)]) {
      for (auto& v : graph[id].inputs) {
        in[static_cast<size_t>(v.node)] = true;
      }
    }
  }
  return in;
}

} // namespace

Sought::Sought(Graph canonical) : graph(std::move(canonical)) {
  for (auto v : graph.outputs) {
    roots.push_back(graph[v.node].kind == "Reshape" ? graph[v.node].inputs[0] : v);
  }
  std::vector<bool> depends(static_cast<size_t>(graph.size()), false);
  for (int id = 0; id < graph.size(); ++id) {
    auto& in = graph[id].inputs;
    bool is_first = !graph.inputs.empty() && id == graph.inputs[0].node;
    depends[static_cast<size_t>(id)] = is_first || std::any_of(in.begin(), in.end(), [&](Value v) {
                                         return depends[static_cast<size_t>(v.node)];
                                       });
    owned.push_back(depends[static_cast<size_t>(id)] && graph[id].kind != "Reshape");
  }
  int64_t most = -1;
  for (size_t i = 0; i < roots.size(); ++i) {
    auto reached = cone(graph, roots[i].node);
    auto count = std::count(reached.begin(), reached.end(), true);
    if (count > most) {
      most = count;
      anchor = static_cast<int>(i);
    }
  }
}

Haystack::Haystack(const Graph& graph)
    : graph(graph), users(graph.users()), is_output(static_cast<size_t>(graph.size()), false) {
  for (auto v : graph.outputs) {
    is_output[static_cast<size_t>(v.node)] = true;
  }
  std::unordered_map<std::string_view, size_t> index;
  for (int id = 0; id < graph.size(); ++id) {
    auto [it, fresh] = index.try_emplace(graph[id].kind, by_kind.size());
    if (fresh) {
      by_kind.emplace_back(it->first, std::vector<int>{});
    }
    by_kind[it->second].second.push_back(id);
  }
}

const std::vector<int>& Haystack::of_kind(std::string_view kind) const {
  static const std::vector<int> none;
  for (auto& [name, ids] : by_kind) {
    if (name == kind) {
      return ids;
    }
  }
  return none;
}

Match::Match(const Sought& sought, const Haystack& haystack)
    : sought_(&sought), haystack_(&haystack), found_(static_cast<size_t>(sought.graph.size())) {}

const Type& Match::type(size_t variable) const {
  return haystack_->graph.type(at(sought_->graph.inputs.at(variable)));
}

bool Match::is_constant(size_t variable) const {
  return haystack_->graph[at(sought_->graph.inputs.at(variable)).node].kind == "constant";
}

size_t Match::variables() const {
  return sought_->graph.inputs.size();
}

const Node& Match::node(std::string_view kind, int index) const {
  for (int id = 0; id < sought_->graph.size(); ++id) {
    if (sought_->graph[id].kind == kind && index-- == 0) {
      return haystack_->graph[at({id, 0}).node];
    }
  }
  throw std::out_of_range("[match] the pattern has too few nodes of kind " + std::string(kind));
}

bool Match::has(std::string_view kind) const {
  auto& graph = sought_->graph;
  for (int id = 0; id < graph.size(); ++id) {
    if (graph[id].kind == kind) {
      return true;
    }
  }
  return false;
}

double Match::scalar(int index) const {
  for (int id = 0; id < sought_->graph.size(); ++id) {
    auto& constant = sought_->graph[id].constant;
    if (constant && constant->scalar && index-- == 0) {
      return *haystack_->graph[at({id, 0}).node].constant->scalar;
    }
  }
  throw std::out_of_range("[match] the pattern has too few one-element constants.");
}

Value Match::at(Value sought) const {
  auto v = found_[static_cast<size_t>(sought.node)];
  return sought_->graph[sought.node].kind == "input" ? v : Value{v.node, sought.output};
}

class Search {
 public:
  Search(
      const Sought& sought,
      const Haystack& haystack,
      const std::function<bool(const Match&)>& accept)
      : sought_(sought), haystack_(haystack), accept_(accept), match_(sought, haystack) {}

  bool run(int candidate) {
    auto root = sought_.roots[static_cast<size_t>(sought_.anchor)];
    return solve({{root, {candidate, root.output}}});
  }

 private:
  using Goal = std::pair<Value, Value>; // a value of the sought graph, the graph's value for it
  using Goals = std::vector<Goal>;

  /// Meets the goals, then those that they lead to; undoes what it bound when it cannot.
  bool solve(Goals goals) {
    if (--budget_ < 0) {
      return false;
    }
    std::vector<int> bound;
    while (!goals.empty()) {
      auto [want, have] = goals.back();
      goals.pop_back();
      auto& found = match_.found_[static_cast<size_t>(want.node)];
      auto& node = sought_.graph[want.node];
      bool is_variable = node.kind == "input";
      if (found) {
        if (found.node != have.node || (is_variable && !(found == have))) {
          return undo(bound);
        }
        continue;
      }
      auto& other = haystack_.graph[have.node];
      if (!is_variable && !fits(node, want, other, have)) {
        return undo(bound);
      }
      found = is_variable ? have : Value{have.node, 0};
      bound.push_back(want.node);
      if (is_variable) {
        continue;
      }
      if (is_commutative(node.kind)) {
        for (bool swap : {true, false}) {
          auto branch = goals;
          branch.emplace_back(node.inputs[0], other.inputs[swap ? 1 : 0]);
          branch.emplace_back(node.inputs[1], other.inputs[swap ? 0 : 1]);
          if (!swap) {
            goals = std::move(branch);
          } else if (solve(std::move(branch))) {
            return true;
          }
        }
        continue;
      }
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        goals.emplace_back(node.inputs[i], other.inputs[i]);
      }
    }
    return rest() || undo(bound);
  }

  bool undo(const std::vector<int>& bound) {
    for (int id : bound) {
      match_.found_[static_cast<size_t>(id)] = {};
    }
    return false;
  }

  bool fits(const Node& node, Value want, const Node& other, Value have) const {
    if (node.kind != other.kind || want.output != have.output ||
        node.inputs.size() != other.inputs.size()) {
      return false;
    }
    return !node.constant || !node.constant->scalar || other.constant->scalar;
  }

  /// Nodes that the roots met so far do not reach: found among the users of a value that is known.
  bool rest() {
    auto& graph = sought_.graph;
    int best = -1;
    const std::vector<int>* candidates = nullptr;
    for (int id = 0; id < graph.size(); ++id) {
      if (match_.found_[static_cast<size_t>(id)] || is_leaf(graph[id])) {
        continue;
      }
      for (auto v : graph[id].inputs) {
        auto found = match_.found_[static_cast<size_t>(v.node)];
        if (!found) {
          continue;
        }
        auto& users = haystack_.users[static_cast<size_t>(found.node)];
        if (!candidates || users.size() < candidates->size()) {
          best = id;
          candidates = &users;
        }
      }
    }
    if (best < 0) {
      return complete() && accept_(match_);
    }
    for (int candidate : *candidates) {
      if (solve({{{best, 0}, {candidate, 0}}})) {
        return true;
      }
    }
    return false;
  }

  bool complete() const {
    auto& found = match_.found_;
    for (auto v : sought_.graph.inputs) {
      if (!found[static_cast<size_t>(v.node)]) {
        return false;
      }
    }
    for (auto v : sought_.roots) {
      if (!found[static_cast<size_t>(v.node)]) {
        return false;
      }
    }
    return true;
  }

  const Sought& sought_;
  const Haystack& haystack_;
  const std::function<bool(const Match&)>& accept_;
  Match match_;
  int budget_ = 1000; // against graphs on which every choice fails late
};

bool find_match(
    const Sought& sought,
    const Haystack& haystack,
    int candidate,
    const std::function<bool(const Match&)>& accept) {
  return Search(sought, haystack, accept).run(candidate);
}

bool same_graph(
    const Sought& exact,
    const Graph& graph,
    const std::vector<Value>& variables,
    const std::vector<Value>& roots,
    std::vector<int>& nodes) {
  nodes.assign(static_cast<size_t>(exact.graph.size()), -1);
  auto& inputs = exact.graph.inputs;
  std::function<bool(Value, Value)> same = [&](Value a, Value b) {
    auto& node = exact.graph[a.node];
    if (node.kind == "input") {
      auto i = std::find(inputs.begin(), inputs.end(), a) - inputs.begin();
      return variables[static_cast<size_t>(i)] == b;
    }
    int& known = nodes[static_cast<size_t>(a.node)];
    if (known >= 0) {
      return known == b.node && a.output == b.output;
    }
    auto& other = graph[b.node];
    bool alike = a.output == b.output && node.kind == other.kind && node.outputs == other.outputs &&
        node.attrs == other.attrs && node.inputs.size() == other.inputs.size();
    if (!alike) {
      return false;
    }
    if (node.constant) {
      if (!other.constant || !node.constant->same(*other.constant)) {
        return false;
      }
      known = b.node;
      return true;
    }
    auto all = [&](bool swap) {
      for (size_t i = 0; i < node.inputs.size(); ++i) {
        if (!same(node.inputs[i], other.inputs[swap ? 1 - i : i])) {
          return false;
        }
      }
      return true;
    };
    if (!all(false) && !(is_commutative(node.kind) && all(true))) {
      return false;
    }
    known = b.node;
    return true;
  };
  for (size_t i = 0; i < roots.size(); ++i) {
    if (!same(exact.roots[i], roots[i])) {
      return false;
    }
  }
  return true;
}

} // namespace zmlx
