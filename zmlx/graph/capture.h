// zmlx/graph/capture.h: between MLX's arrays and our graph. capture.cpp and primitives.cpp are the
// files that know MLX.
#pragma once

#include <functional>

#include "zmlx/graph/ir.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// The lazy graph from `inputs` to `outputs`. Leaves that are no inputs become constants. Nothing
/// is evaluated.
Graph capture(const Arrays& inputs, const Arrays& outputs);

/// Traces fn on placeholders with the shapes and dtypes of `examples` (functions under mx::compile
/// are seen through) and captures what it builds. What fn throws passes through.
Graph trace(const std::function<Arrays(const Arrays&)>& fn, const Arrays& examples);

/// The lazy graph of `outputs` down to evaluated arrays, which become constants, with the array
/// behind each node's outputs.
struct Captured {
  Graph graph;
  std::vector<std::pair<Value, mx::array>> arrays;
};
Captured capture_with_arrays(const Arrays& outputs);

/// The lazy arrays of one node on these inputs.
Arrays emit_node(const Node& node, const Arrays& inputs);

/// Replaces what depends on no input by constants, evaluating it now. Results over a megabyte stay
/// as they are.
void fold_constants(Graph& graph);

/// The graph as lazy MLX arrays on `inputs`: MLX's nodes from their own primitives, ours as fused
/// primitives.
Arrays emit(const Graph& graph, const Arrays& inputs);

/// MLX's array behind a constant node.
const mx::array& array_of(const Constant& constant);

Dtype dtype_of(mx::Dtype dtype);
mx::Dtype mlx_dtype(Dtype dtype);
Type type_of(const mx::array& array);
mx::Shape mlx_shape(const Shape& shape);

} // namespace zmlx
