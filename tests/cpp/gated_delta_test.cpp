// tests/cpp/gated_delta_test.cpp: the gated delta rule in chunks, where a token's NaN may go, and
// states that no token changes.
#include <limits>

#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

const Op& op() {
  return *find_op("gated_delta_update");
}

const Case& case_named(const char* name) {
  for (auto& example : op().cases) {
    if (example.name == name) {
      return example;
    }
  }
  fail("gated_delta_test", "there is no case ", name, ".");
}

/// The kernel's outputs for float32 inputs.
Arrays computed(const Arrays& inputs) {
  Team team(2);
  auto types = op().types(types_of(inputs), {});
  auto memory = run_kernel(op(), inputs, {}, team);
  Arrays out;
  for (size_t i = 0; i < types.size(); ++i) {
    auto* values = reinterpret_cast<const float*>(memory[i].data());
    out.push_back(mx::array(values, mlx_shape(types[i].shape), mx::float32));
  }
  return out;
}

TEST(GatedDelta, nan_of_a_token_spreads_as_in_the_reference) {
  constexpr int token =
      21; // in the second of AVX-512's chunks, and with tokens of its own chunk after it
  auto clean = case_named("chunks").inputs(mx::float32);
  for (size_t i = 0; i < 5; ++i) { // q, k, v, g, beta
    SCOPED_TRACE(op().args[i]);
    auto inputs = clean;
    auto start = mx::Shape(inputs[i].ndim(), 0);
    start[1] = token;
    auto stop = mx::Shape(inputs[i].ndim(), 1);
    stop[1] = token + 1;
    auto nan = mx::full(
        mx::Shape(inputs[i].ndim(), 1), std::numeric_limits<float>::quiet_NaN(), mx::float32);
    inputs[i] = mx::slice_update(inputs[i], nan, start, stop);
    auto got = computed(inputs);
    auto want = op().reference(inputs, {});
    for (size_t o = 0; o < got.size(); ++o) {
      expect_close(got[o], want[o], tolerance_of(mx::float32));
    }
  }
}

TEST(GatedDelta, a_state_that_no_token_changes_stays_as_it_is) {
  auto inputs = case_named("masked chunks").inputs(mx::float32);
  auto& state = inputs[5];
  auto start = mx::Shape(state.ndim(), 0);
  state = mx::slice_update(
      state, mx::full({1, 1, 1, 1}, std::numeric_limits<float>::infinity()), start, {1, 1, 1, 1});
  inputs[6] = mx::zeros_like(inputs[6]);
  auto got = computed(inputs);
  EXPECT_TRUE(mx::array_equal(got[0], mx::zeros_like(got[0])).item<bool>());
  EXPECT_TRUE(mx::array_equal(got[1], state).item<bool>());
}

} // namespace
} // namespace zmlx
