// tests/cpp/compile_test.cpp: compile() computes what the function computes, fused where it can be,
// and knows when not to.
#include <gtest/gtest.h>

#include "mlx/mlx.h"
#include "zmlx/plan/compile.h"
#include "zmlx/plan/execute.h"
#include "zmlx/runtime/fused.h"

namespace zmlx {
namespace {

mx::array normal(mx::Shape shape, uint64_t seed) {
  auto a = mx::random::normal(shape, mx::random::key(seed));
  mx::eval(a);
  return a;
}

float largest_difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(a - b)).item<float>();
}

/// A gated MLP after a norm, spelled out in MLX.
Function gated_mlp() {
  auto norm = normal({64}, 1), gate = normal({96, 64}, 2), up = normal({96, 64}, 3),
       down = normal({64, 96}, 4);
  return [=](const Arrays& in) {
    auto x = mx::fast::rms_norm(in[0], norm, 1e-5f);
    auto g = mx::matmul(x, mx::transpose(gate)), u = mx::matmul(x, mx::transpose(up));
    return Arrays{in[0] + mx::matmul(g * mx::sigmoid(g) * u, mx::transpose(down))};
  };
}

TEST(Compile, AFunctionWithAKernelForEveryNodeIsOneRunACall) {
  auto fn = gated_mlp();
  auto fast = zmlx::compile(fn);
  auto x = normal({2, 3, 64}, 9);
  auto expected = fn({x})[0];
  fast({x});
  auto before = run_counts().runs;
  EXPECT_LT(largest_difference(fast({x})[0], expected), 1e-3f);
  EXPECT_EQ(run_counts().runs - before, 1u);
}

TEST(Compile, EachShapeAndDtypeIsTracedOnce) {
  int calls = 0;
  auto fast = zmlx::compile([&calls](const Arrays& in) {
    ++calls;
    return Arrays{in[0] * mx::sigmoid(in[0]) * in[1]};
  });
  auto x = normal({4, 8}, 1), y = normal({4, 8}, 2);
  for (int i = 0; i < 3; ++i) {
    EXPECT_LT(largest_difference(fast({x, y})[0], x * mx::sigmoid(x) * y), 1e-5f);
  }
  EXPECT_EQ(calls, 1);
  fast({normal({5, 8}, 1), normal({5, 8}, 2)});
  EXPECT_EQ(calls, 2);
  fast({mx::astype(x, mx::float16), mx::astype(y, mx::float16)});
  EXPECT_EQ(calls, 3);
}

TEST(Compile, WhatHasNoKernelStaysMLXAmongFusedNodes) {
  Function fn = [](const Arrays& in) {
    return Arrays{mx::erf(in[0] * mx::sigmoid(in[0]) * in[1]), mx::cumsum(in[1], 0)};
  };
  auto fast = zmlx::compile(fn);
  auto x = normal({4, 8}, 1), y = normal({4, 8}, 2);
  auto expected = fn({x, y}), got = fast({x, y});
  ASSERT_EQ(got.size(), 2u);
  EXPECT_LT(largest_difference(got[0], expected[0]), 1e-5f);
  EXPECT_LT(largest_difference(got[1], expected[1]), 1e-5f);
}

TEST(Compile, AnOutputThatIsAnInputOrAConstantIsKept) {
  auto constant = normal({3}, 5);
  auto fast = zmlx::compile([=](const Arrays& in) { return Arrays{in[0], constant, in[0]}; });
  auto x = normal({2}, 1);
  auto got = fast({x});
  EXPECT_EQ(largest_difference(got[0], x), 0.0f);
  EXPECT_EQ(largest_difference(got[1], constant), 0.0f);
  EXPECT_EQ(largest_difference(got[2], x), 0.0f);
}

TEST(Compile, GradientsAreThoseOfTheFunction) {
  auto fn = gated_mlp();
  auto fast = zmlx::compile(fn);
  auto x = normal({3, 64}, 9);
  auto of = [](Function f) {
    return mx::grad(std::function<mx::array(const mx::array&)>(
        [f](const mx::array& a) { return mx::sum(mx::square(f({a})[0])); }));
  };
  EXPECT_EQ(largest_difference(of(fast)(x), of(fn)(x)), 0.0f);
}

TEST(Compile, WhatTheFunctionThrowsPassesThroughAndTheNextCallWorks) {
  bool broken = true;
  auto fast = zmlx::compile([&broken](const Arrays& in) {
    if (broken) {
      throw std::runtime_error("broken on purpose");
    }
    return Arrays{in[0] * mx::sigmoid(in[0]) * in[0]};
  });
  auto x = normal({4}, 1);
  EXPECT_THROW(fast({x}), std::runtime_error);
  broken = false;
  EXPECT_LT(largest_difference(fast({x})[0], x * mx::sigmoid(x) * x), 1e-5f);
}

TEST(Compile, AStateThatTheCallerKeepsIsNotChanged) {
  auto fast = zmlx::compile([](const Arrays& in) { return node(op_named("kv_update"), in, {}); });
  auto buffer = mx::zeros({1, 2, 8, 4});
  mx::eval(buffer);
  auto out = fast({buffer, normal({1, 2, 1, 4}, 3), mx::array(5)})[0];
  mx::eval(out);
  EXPECT_EQ(mx::max(mx::abs(buffer)).item<float>(), 0.0f);
  EXPECT_GT(mx::max(mx::abs(out)).item<float>(), 0.0f);
}

TEST(Compile, AnUnknownPatternIsRefused) {
  RewriteOptions options;
  options.include = {"swishglue"};
  auto fast = zmlx::compile([](const Arrays& in) { return in; }, options);
  EXPECT_THROW(fast({normal({2}, 1)}), std::invalid_argument);
}

} // namespace
} // namespace zmlx
