// zmlx/graph/capture.h: between MLX's arrays and our graph. capture.cpp is the one file of graph/ that knows MLX.
#pragma once

#include <functional>

#include "zmlx/graph/ir.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// The lazy graph from `inputs` to `outputs`. Leaves that are no inputs become constants. Nothing is evaluated.
Graph capture(const Arrays& inputs, const Arrays& outputs);

/// Traces fn on placeholders with the shapes and dtypes of `examples` (functions under mx::compile are seen through) and
/// captures what it builds. What fn throws passes through.
Graph trace(const std::function<Arrays(const Arrays&)>& fn, const Arrays& examples);

/// The graph as lazy MLX arrays on `inputs`: MLX's nodes from their own primitives, ours as fused primitives.
Arrays emit(const Graph& graph, const Arrays& inputs);

/// MLX's array behind a constant node.
const mx::array& array_of(const Constant& constant);

Dtype dtype_of(mx::Dtype dtype);
mx::Dtype mlx_dtype(Dtype dtype);
Type type_of(const mx::array& array);
mx::Shape mlx_shape(const Shape& shape);

} // namespace zmlx
