// zmlx/ops/indices.h: integers that name rows, experts or classes.
#pragma once

#include "zmlx/ops/check.h"

namespace zmlx {

inline void expect_indices(const char* op, const char* name, const Type& type) {
  if (type.dtype != Dtype::i32 && type.dtype != Dtype::u32 && type.dtype != Dtype::i64) {
    fail(op, name, " must be int32, uint32 or int64 but got ", name_of(type.dtype), ".");
  }
}

inline int64_t index_at(const Tensor& indices, int64_t i) {
  switch (indices.dtype()) {
    case Dtype::u32:
      return indices.as<uint32_t>()[i];
    case Dtype::i64:
      return indices.as<int64_t>()[i];
    default:
      return indices.as<int32_t>()[i];
  }
}

} // namespace zmlx
