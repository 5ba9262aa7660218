// tests/cpp/simd_math_test.cpp: conversions and the exponential, seen through ops that consist of
// little else.
#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

/// Every finite value of a short dtype, infinities and NaN.
mx::array all_values(mx::Dtype dtype) {
  return mx::view(mx::astype(mx::arange(65536), mx::uint16), dtype);
}

TEST(SimdMath, ReadsAndWritesEveryShortFloat) {
  for (auto dtype : {mx::float16, mx::bfloat16}) {
    auto x = all_values(dtype);
    // An angle of zero turns x into itself.
    auto row = mx::reshape(x, {1, 1, 65536 / 64, 64});
    auto y = node(
        op_named("rope"),
        {row, mx::array(0), mx::zeros({1})},
        {{"dims", int64_t{2}}, {"scale", 0.0}})[0];
    auto finite = mx::reshape(mx::isfinite(x), row.shape());
    EXPECT_TRUE(
        mx::array_equal(
            mx::where(finite, y, mx::zeros_like(y)), mx::where(finite, row, mx::zeros_like(y)))
            .item<bool>());
  }
}

TEST(SimdMath, RoundsToNearestEven) {
  for (auto dtype : {mx::float16, mx::bfloat16}) {
    // Products of two short floats need rounding of every kind, overflow and denormals included.
    auto gate = mx::full({65536}, 40.0f, dtype); // silu(40) = 40 in float32
    auto up = all_values(dtype);
    auto got = node(op_named("swiglu"), {gate, up})[0];
    auto want = mx::astype(mx::astype(up, mx::float32) * mx::array(40.0f), dtype);
    EXPECT_TRUE(mx::array_equal(got, want, true).item<bool>());
  }
}

TEST(SimdMath, HasAnExactExponential) {
  std::vector<float> gates;
  for (int i = -2000; i <= 2000; ++i) {
    gates.push_back(static_cast<float>(i) * 0.0437f);
  }
  for (float x : {-INFINITY, INFINITY, NAN, -1000.0f, 1000.0f, -0.0f, -103.9f, -87.4f, 88.7f}) {
    gates.push_back(x);
  }
  auto gate = mx::array(gates.data(), {static_cast<int>(gates.size())}, mx::float32);
  auto got = floats(node(op_named("swiglu"), {gate, mx::ones_like(gate)})[0]);
  for (size_t i = 0; i < gates.size(); ++i) {
    double x = gates[i];
    double want = x / (1 + std::exp(-x));
    if (std::isnan(want) || std::isinf(want)) {
      // Minus infinity times zero is NaN in MLX too.
      EXPECT_EQ(std::isnan(got[i]), std::isnan(want)) << x;
    } else {
      EXPECT_NEAR(got[i], want, std::max(std::abs(want) * 4e-7, 1e-36)) << x;
    }
  }
}

} // namespace
} // namespace zmlx
