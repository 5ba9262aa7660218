// tests/cpp/op_testing.h: running an op's kernel on a team of a chosen size, and comparing arrays.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "mlx/mlx.h"
#include "zmlx/graph/capture.h"
#include "zmlx/ops/op.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/fused.h"

namespace zmlx::testing {

struct Tolerance {
  mx::Dtype dtype;
  double relative; // to the larger of an element and the array's root mean square
};

/// The one table: six units in the last place of a short dtype, for ops that round several times;
/// sums of thousands of terms in float32.
inline const Tolerance tolerances[] = {
    {mx::float32, 2e-5},
    {mx::float16, 3e-3},
    {mx::bfloat16, 2.4e-2},
};

inline double tolerance_of(mx::Dtype dtype) {
  for (auto& row : tolerances) {
    if (row.dtype == dtype) {
      return row.relative;
    }
  }
  return 0;
}

inline bool floating(const mx::array& x) {
  return mx::issubdtype(x.dtype(), mx::floating);
}

/// Floating arrays as float32, the others as they are.
inline Arrays in_float32(Arrays arrays) {
  for (auto& x : arrays) {
    if (floating(x)) {
      x = mx::astype(x, mx::float32);
    }
  }
  return arrays;
}

inline std::vector<float> floats(const mx::array& x) {
  auto y = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(y);
  return {y.data<float>(), y.data<float>() + y.size()};
}

/// Both arrays in the same places, NaN and infinities included.
inline void expect_close(const mx::array& got, const mx::array& want, double tolerance) {
  ASSERT_EQ(got.shape(), want.shape());
  if (want.size() == 0) {
    return; // MLX's own quantised matmul divides by zero for no rows.
  }
  auto a = floats(got);
  auto b = floats(want);
  double squares = 0;
  size_t finite = 0;
  for (float y : b) {
    if (std::isfinite(y)) {
      squares += static_cast<double>(y) * y;
      ++finite;
    }
  }
  double typical = finite ? std::sqrt(squares / static_cast<double>(finite)) : 0;
  double worst = 0;
  size_t place = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    double error = 0;
    if (std::isfinite(a[i]) && std::isfinite(b[i])) {
      error = std::abs(static_cast<double>(a[i]) - b[i]) /
          std::max({static_cast<double>(std::abs(b[i])), typical, 1e-30});
    } else if (std::isnan(a[i]) != std::isnan(b[i]) || (!std::isnan(a[i]) && a[i] != b[i])) {
      error = INFINITY;
    }
    if (error > worst) {
      worst = error;
      place = i;
    }
  }
  EXPECT_LE(worst, tolerance) << "element " << place << " of " << a.size() << " is " << a[place]
                              << ", not " << b[place];
}

/// Outputs in a form that two right answers share: indices may come in any order, and where
/// activations are rounded nearly equal values may be chosen either way.
inline Arrays comparable(Arrays outputs, mx::Dtype dtype) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].dtype() == mx::uint32 && outputs[i].ndim() > 0) {
      outputs[i] = dtype == mx::float32 ? mx::sort(outputs[i], -1) : mx::zeros_like(outputs[i]);
      if (i + 1 < outputs.size() && outputs[i + 1].shape() == outputs[i].shape()) {
        outputs[i + 1] = mx::sort(outputs[i + 1], -1);
      }
    }
  }
  return outputs;
}

inline Types types_of(const Arrays& arrays) {
  Types types;
  for (auto& x : arrays) {
    types.push_back(type_of(x));
  }
  return types;
}

/// Runs the CPU kernel itself. Scratch and outputs start as NaN, so that nothing may rely on zeros.
inline std::vector<std::vector<std::byte>>
run_kernel(const Op& op, Arrays inputs, const Attrs& attrs, Team& team) {
  for (auto& x : inputs) {
    x = mx::contiguous(x);
  }
  mx::eval(inputs);
  auto in_types = types_of(inputs);
  auto out_types = op.types(in_types, attrs);
  auto kernel = op.cpu(in_types, out_types, attrs);
  std::vector<Tensor> in;
  std::vector<Tensor> out;
  std::vector<std::vector<std::byte>> memory;
  for (size_t i = 0; i < inputs.size(); ++i) {
    in.push_back({inputs[i].data<char>(), in_types[i]});
  }
  for (auto& type : out_types) {
    memory.emplace_back(type.bytes(), std::byte{0xFF});
    out.push_back({memory.back().data(), type});
  }
  for (auto [output, input] : op.in_place) {
    auto& from = in[in_place_input(input, in.size())];
    auto& to = out[static_cast<size_t>(output)];
    if (from.type.bytes()) {
      std::memcpy(to.data, from.data, from.type.bytes());
    }
  }
  std::vector<std::byte> scratch(kernel.scratch + 64, std::byte{0xFF});
  auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63};
  Call call{in, out, reinterpret_cast<std::byte*>(address)};
  team.run([&](Member& member) { kernel.run(call, member); });
  return memory;
}

/// The message that f() throws, or "" when it throws nothing.
template <typename F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

} // namespace zmlx::testing
