// zmlx/ops/floating.cpp: the table of floating dtypes.
#include "zmlx/ops/floating.h"

#include "zmlx/runtime/error.h"

namespace zmlx {

const FloatingType& floating_named(const char* op, const std::string& name) {
  static const FloatingType rows[] = {
      {"float32", Dtype::f32, mx::float32},
      {"float16", Dtype::f16, mx::float16},
      {"bfloat16", Dtype::bf16, mx::bfloat16}};
  for (auto& row : rows) {
    if (name == row.name) {
      return row;
    }
  }
  fail(op, "dtype must be float32, float16 or bfloat16 but got ", name, ".");
}

} // namespace zmlx
