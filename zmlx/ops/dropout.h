// zmlx/ops/dropout.h: the cotangent of dropout's probability, for the ops that drop elements.
#pragma once

#include "mlx/ops.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// sum(y * dy) / (1 - p) for y = x / (1 - p) where kept, of an op's first output; 0 where p is 1.
inline mx::array dropout_gradient(const Gradient& of, const mx::array& p) {
  auto one = mx::array(1.0f);
  auto share = mx::where(mx::less(p, one), one - p, one);
  auto y = mx::astype(of.outputs[0], mx::float32);
  auto dot = mx::sum(y * mx::astype(of.cotangents[0], mx::float32));
  return mx::reshape(dot / mx::reshape(share, mx::Shape{}), p.shape());
}

} // namespace zmlx
