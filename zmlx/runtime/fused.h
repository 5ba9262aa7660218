// zmlx/runtime/fused.h: an op as a node of MLX's lazy graph: its kernel on the device that has one,
// else its reference.
#pragma once

#include <optional>

#include "mlx/primitives.h"
#include "mlx/utils.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// Lazy outputs of `op` on `inputs`: one fused node where the device has a kernel for these types,
/// else the op's reference. Throws std::invalid_argument as Op::types does.
Arrays
apply(const Op& op, const Arrays& inputs, const Attrs& attrs = {}, mx::StreamOrDevice s = {});

/// The fused node itself, kernel or not: what patterns and captured graphs are made of.
Arrays node(const Op& op, const Arrays& inputs, const Attrs& attrs = {}, mx::StreamOrDevice s = {});

/// The op of that name; throws std::invalid_argument when there is none.
const Op& op_named(std::string_view name);

/// The op and attributes of a primitive made by node(), or nothing for MLX's own.
struct FusedState {
  const Op* op;
  const Attrs* attrs;
};
std::optional<FusedState> fused_state(const mx::Primitive& primitive);

} // namespace zmlx
