// zmlx/ops/floating.h: floating dtypes by name, for attributes that say one.
#pragma once

#include "zmlx/ops/op.h"

namespace zmlx {

struct FloatingType {
  const char* name;
  Dtype dtype;
  mx::Dtype mlx;
};
/// The floating dtype of that name; throws std::invalid_argument("[op] dtype must be ...").
const FloatingType& floating_named(const char* op, const std::string& name);

} // namespace zmlx
