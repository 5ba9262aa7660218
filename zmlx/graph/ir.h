// zmlx/graph/ir.h: the graph that is rewritten and planned: nodes with a kind, attributes and typed
// outputs. Knows no MLX.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "zmlx/ops/attrs.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx {

/// One output of a node.
struct Value {
  int node = -1;
  int output = 0;

  bool operator==(const Value&) const = default;
  auto operator<=>(const Value&) const = default;
  explicit operator bool() const {
    return node >= 0;
  }
};

/// The data behind a constant node, opaque here (graph/capture.cpp holds an mx::array in it).
struct Constant {
  uintptr_t id = 0; // equal ids are the same array
  std::optional<double> scalar; // the value, when there is one element that a double holds exactly
  std::string table; // the bytes of a few elements, as of a look-up table: made anew by each trace
  std::shared_ptr<void> array;

  /// Whether both hold the same data, as far as ids, scalars and tables tell. Types are compared
  /// elsewhere.
  bool same(const Constant& other) const;
};

struct Node {
  std::string
      kind; // "input", "constant", a primitive of MLX ("Multiply") or one of our ops ("rms_norm")
  Attrs attrs;
  std::vector<Value> inputs;
  std::vector<Type> outputs;
  std::shared_ptr<const Constant> constant;
  std::shared_ptr<void> origin; // MLX's own primitive, to run the node as it was
};

/// Nodes in an order where inputs come first; replaced nodes stay until prune().
class Graph {
 public:
  /// Appends a node and returns its id.
  int add(Node node);
  Value input(Type type);

  const Node& operator[](int id) const {
    return nodes_[static_cast<size_t>(id)];
  }
  Node& operator[](int id) {
    return nodes_[static_cast<size_t>(id)];
  }
  int size() const {
    return static_cast<int>(nodes_.size());
  }
  void reserve(int nodes) {
    nodes_.reserve(static_cast<size_t>(nodes));
  }
  const Type& type(Value v) const {
    return (*this)[v.node].outputs[static_cast<size_t>(v.output)];
  }

  /// Makes every use of `from`, in nodes and in outputs, a use of `to`.
  void replace(Value from, Value to);
  /// The same for many at once, in one sweep; `to` may itself be replaced by another pair.
  void replace(const std::vector<std::pair<Value, Value>>& pairs);
  /// Drops nodes that no output needs and renumbers the rest topologically: inputs, used or not,
  /// then constants, then the others. Returns the new id of each old node, -1 for the dropped.
  /// Throws std::logic_error for a cycle.
  std::vector<int> prune();
  /// Nodes that use a value of each node, by node id.
  std::vector<std::vector<int>> users() const;
  /// Ids of the nodes that the outputs need, inputs of a node before it.
  std::vector<int> order() const;

  std::vector<Value> inputs;
  std::vector<Value> outputs;
  /// Values whose place somebody wants to know after changes; they keep nothing alive, and a
  /// dropped one becomes Value{}.
  std::vector<Value> tracked;

 private:
  std::vector<Node> nodes_;
};

/// One line a node: "%12 = linear(%3, %4, %5, %6) {bits=4, group_size=64} : bfloat16(1, 1, 1024)".
std::string to_string(const Graph& graph);

} // namespace zmlx
