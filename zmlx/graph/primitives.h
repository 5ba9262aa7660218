// zmlx/graph/primitives.h: what graph/ knows of MLX's primitives: kind, parameters, which are
// elementwise.
#pragma once

#include <string_view>

#include "mlx/primitives.h"
#include "zmlx/ops/attrs.h"

namespace zmlx {

namespace mx = mlx::core;

/// Kind and attributes of a node made by this primitive. Two nodes of equal kind, attributes and
/// output types compute the same function; a primitive whose parameters cannot be read has its
/// address as an attribute.
struct Described {
  std::string kind;
  Attrs attrs;
};
Described describe(const mx::Primitive& primitive);

} // namespace zmlx
