// zmlx/plan/split.cpp: reverse reachability decides which half a node belongs to.
#include "zmlx/plan/split.h"

#include <algorithm>
#include <map>

namespace zmlx {
namespace {

using Key = std::pair<int, int>;

Key key(Value v) {
  return {v.node, v.output};
}

class Splitter {
 public:
  Splitter(const Graph& graph, const std::vector<int>& wanted)
      : graph_(graph), wanted_(wanted), in_first_(static_cast<size_t>(graph.size()), false) {}

  SplitGraph run() {
    std::vector<Value> roots;
    for (int i : wanted_) {
      roots.push_back(graph_.outputs[static_cast<size_t>(i)]);
    }
    mark(roots);

    for (auto v : graph_.inputs) {
      Value copy = out_.first.input(graph_.type(v));
      out_.first[copy.node].attrs = graph_[v.node].attrs;
      first_[key(v)] = copy;
    }
    for (int i : wanted_) {
      out_.first.outputs.push_back(in_first(graph_.outputs[static_cast<size_t>(i)]));
      out_.first_outputs.push_back(i);
    }
    for (int i = 0; i < static_cast<int>(graph_.outputs.size()); ++i) {
      if (std::find(wanted_.begin(), wanted_.end(), i) == wanted_.end()) {
        out_.second.outputs.push_back(in_second(graph_.outputs[static_cast<size_t>(i)]));
        out_.second_outputs.push_back(i);
      }
    }
    return std::move(out_);
  }

 private:
  void mark(std::vector<Value> stack) {
    while (!stack.empty()) {
      int id = stack.back().node;
      stack.pop_back();
      if (!in_first_[static_cast<size_t>(id)]) {
        in_first_[static_cast<size_t>(id)] = true;
        auto& inputs = graph_[id].inputs;
        stack.insert(stack.end(), inputs.begin(), inputs.end());
      }
    }
  }

  /// Copies a node and what it needs, and returns the value in the copy. `cut` may give a value
  /// another origin.
  template <typename Cut>
  Value copy(Graph& to, std::map<Key, Value>& done, Value v, const Cut& cut) {
    if (auto it = done.find(key(v)); it != done.end()) {
      return it->second;
    }
    if (Value other = cut(v)) {
      return done[key(v)] = other;
    }
    Node node = graph_[v.node];
    for (auto& input : node.inputs) {
      input = copy(to, done, input, cut);
    }
    int outputs = static_cast<int>(node.outputs.size());
    int id = to.add(std::move(node));
    for (int i = 0; i < outputs; ++i) {
      done[{v.node, i}] = {id, i};
    }
    return done[key(v)];
  }

  Value in_first(Value v) {
    return copy(out_.first, first_, v, [](Value) { return Value{}; });
  }

  Value in_second(Value v) {
    return copy(out_.second, second_, v, [this](Value inner) {
      auto& kind = graph_[inner.node].kind;
      bool is_input = kind == "input";
      bool is_cheap = kind == "constant" || kind == "Reshape";
      if (is_cheap || (!is_input && !in_first_[static_cast<size_t>(inner.node)])) {
        return Value{};
      }
      out_.sources.push_back({is_input, is_input ? input_index(inner) : first_output(inner)});
      Value copy = out_.second.input(graph_.type(inner));
      copy_attrs(inner, copy);
      return copy;
    });
  }

  /// A KV buffer varies in length from call to call, and so does what is written in its place.
  void copy_attrs(Value from, Value to) {
    bool is_state = std::any_of(wanted_.begin(), wanted_.end(), [&](int i) {
      return graph_.outputs[static_cast<size_t>(i)] == from;
    });
    out_.second[to.node].attrs = is_state   ? Attrs{{"varies", int64_t{1}}}
        : graph_[from.node].kind == "input" ? graph_[from.node].attrs
                                            : Attrs{};
  }

  int input_index(Value v) const {
    return static_cast<int>(
        std::find(graph_.inputs.begin(), graph_.inputs.end(), v) - graph_.inputs.begin());
  }

  int first_output(Value v) {
    Value copied = in_first(v);
    auto& outputs = out_.first.outputs;
    auto it = std::find(outputs.begin(), outputs.end(), copied);
    if (it == outputs.end()) {
      outputs.push_back(copied);
      return static_cast<int>(outputs.size()) - 1;
    }
    return static_cast<int>(it - outputs.begin());
  }

  const Graph& graph_;
  const std::vector<int>& wanted_;
  std::vector<bool> in_first_;
  SplitGraph out_;
  std::map<Key, Value> first_;
  std::map<Key, Value> second_;
};

} // namespace

SplitGraph split(const Graph& graph, const std::vector<int>& wanted) {
  return Splitter(graph, wanted).run();
}

} // namespace zmlx
