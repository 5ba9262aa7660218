// tests/cmake_consumer/main.cpp: runs one op of an installed zmlx and compares it with its
// reference.
#include <iostream>

#include "mlx/ops.h"
#include "zmlx/runtime/fused.h"

int main() {
  const zmlx::Op& op = zmlx::op_named("swiglu");
  const zmlx::Case& example = op.cases.front();
  const zmlx::Arrays inputs = example.inputs(mlx::core::float32);
  const auto out = zmlx::apply(op, inputs, example.attrs).front();
  const auto expected = op.reference(inputs, example.attrs).front();
  if (!mlx::core::allclose(out, expected, 1e-5, 1e-6).item<bool>()) {
    std::cerr << "swiglu differs from its reference\n";
    return 1;
  }
  std::cout << "swiglu agrees with its reference\n";
}
