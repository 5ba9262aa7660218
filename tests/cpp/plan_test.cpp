// tests/cpp/plan_test.cpp: arena placement, cutting a graph in two, replaying a plan, and when a
// state is written in place.
#include <gtest/gtest.h>

#include <random>

#include "mlx/mlx.h"
#include "zmlx/graph/capture.h"
#include "zmlx/plan/arena.h"
#include "zmlx/plan/execute.h"
#include "zmlx/plan/split.h"
#include "zmlx/plan/step.h"
#include "zmlx/runtime/fused.h"

namespace zmlx {
namespace {

TEST(Arena, ValuesThatLiveTogetherNeverOverlap) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<Lifetime> lifetimes;
    for (int i = 0; i < 40; ++i) {
      int first = static_cast<int>(random() % 30);
      lifetimes.push_back({random() % 1000, first, first + static_cast<int>(random() % 10)});
    }
    auto layout = lay_out(lifetimes);
    for (size_t i = 0; i < lifetimes.size(); ++i) {
      EXPECT_EQ(layout.offsets[i] % 64, 0u);
      EXPECT_LE(layout.offsets[i] + lifetimes[i].bytes, layout.bytes);
      for (size_t k = 0; k < i; ++k) {
        bool together =
            lifetimes[i].first <= lifetimes[k].last && lifetimes[k].first <= lifetimes[i].last;
        bool apart = layout.offsets[i] + lifetimes[i].bytes <= layout.offsets[k] ||
            layout.offsets[k] + lifetimes[k].bytes <= layout.offsets[i];
        EXPECT_TRUE(!together || apart) << i << " and " << k;
      }
    }
  }
}

TEST(Arena, AChainOfValuesNeedsTheMemoryOfTwo) {
  std::vector<Lifetime> lifetimes;
  for (int i = 0; i < 100; ++i) {
    lifetimes.push_back({640, i, i + 1});
  }
  EXPECT_EQ(lay_out(lifetimes).bytes, 1280u);
}

TEST(Arena, NoValuesNeedNoMemory) {
  EXPECT_EQ(lay_out({}).bytes, 0u);
}

mx::array weight() {
  static const mx::array ones = mx::array({1.0f, 1.0f, 1.0f, 1.0f});
  return ones;
}

/// tokens-like input x (1, 1, 2, 4), offset, buffer -> (normalised x, buffer with x's row written
/// at offset).
Arrays small_step(const Arrays& in) {
  auto normalised = node(op_named("rms_norm"), {in[0], weight()}, {{"eps", 1e-6}})[0];
  auto row = mx::reshape(normalised, {1, 2, 1, 4});
  auto buffer = node(op_named("kv_update"), {in[2], row, in[1]})[0];
  return {normalised, buffer};
}

Arrays example(int capacity) {
  return {mx::zeros({1, 1, 2, 4}), mx::array(0), mx::zeros({1, 2, capacity, 4})};
}

Graph small_graph() {
  Graph graph = trace(small_step, example(8));
  graph[graph.inputs[2].node].attrs.set("varies", int64_t{1});
  return graph;
}

std::shared_ptr<Executable> small_executable() {
  auto result = make_plan(small_graph());
  EXPECT_TRUE(result.reasons.empty()) << (result.reasons.empty() ? "" : result.reasons[0]);
  return std::make_shared<Executable>(result.plan);
}

mx::array row_of(float value) {
  auto x = mx::add(
      mx::multiply(mx::ones({1, 1, 2, 4}), mx::array(value)),
      mx::reshape(mx::arange(8.0f), {1, 1, 2, 4}));
  mx::eval(x);
  return x;
}

float largest_difference(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(a - b)).item<float>();
}

TEST(Plan, ReplaysTheGraphItWasMadeFrom) {
  auto executable = small_executable();
  Arrays in{row_of(1), mx::array(3), mx::zeros({1, 2, 8, 4})};
  auto expected = small_step({in[0], in[1], mx::array(in[2])});
  auto reference = mx::fast::rms_norm(in[0], weight(), 1e-6f);
  auto out = execute(executable, in, {{1, 2, 8, 4}});
  EXPECT_LT(largest_difference(out[0], reference), 1e-5f);
  EXPECT_LT(largest_difference(out[0], expected[0]), 1e-6f);
  EXPECT_EQ(largest_difference(out[1], expected[1]), 0.0f);
}

TEST(Plan, RefusesAnInputOfAnotherTypeInWords) {
  auto executable = small_executable();
  Arrays in{mx::zeros({1, 1, 2, 5}), mx::array(3), mx::zeros({1, 2, 8, 4})};
  try {
    execute(executable, in, {{1, 2, 8, 4}});
    FAIL() << "nothing was thrown";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(
        error.what(),
        "[zmlx_plan] input 0 must be float32(1, 1, 2, 4) but is float32(1, 1, 2, 5).");
  }
  EXPECT_THROW(execute(executable, {in[0]}, {}), std::invalid_argument);
}

TEST(Plan, SaysWhichNodeHasNoKernel) {
  auto graph = trace([](const Arrays& in) { return Arrays{mx::erf(in[0])}; }, {mx::zeros({3})});
  auto result = make_plan(graph);
  ASSERT_EQ(result.reasons.size(), 1u);
  EXPECT_EQ(result.reasons[0], "Erf has no CPU kernel (float32(3,))");
  EXPECT_EQ(result.plan, nullptr);
}

TEST(Plan, WritesAStateInPlaceWhenNobodyElseHoldsIt) {
  auto executable = small_executable();
  auto buffer = mx::zeros({1, 2, 8, 4});
  mx::eval(buffer);
  auto* memory = buffer.data<float>();
  auto before = run_counts();
  for (int i = 0; i < 8; ++i) {
    auto out = execute(
        executable,
        {row_of(static_cast<float>(i)), mx::array(i), std::move(buffer)},
        {{1, 2, 8, 4}});
    buffer = out[1];
    mx::async_eval({out[0]});
  }
  mx::eval(buffer);
  EXPECT_EQ(run_counts().in_place - before.in_place, 8u);
  EXPECT_EQ(run_counts().copied, before.copied);
  EXPECT_EQ(buffer.data<float>(), memory);
}

TEST(Plan, CopiesAStateFirstWhenItIsShared) {
  auto executable = small_executable();
  auto buffer = mx::zeros({1, 2, 8, 4});
  mx::eval(buffer);
  auto kept = buffer; // a deep-copied cache holds the same array
  auto out = execute(executable, {row_of(1), mx::array(2), std::move(buffer)}, {{1, 2, 8, 4}});
  mx::eval(out);
  EXPECT_EQ(mx::max(mx::abs(kept)).item<float>(), 0.0f);
  EXPECT_GT(mx::max(mx::abs(out[1])).item<float>(), 0.0f);
}

TEST(Plan, CopiesAStateFirstWhenAViewOfItIsHeld) {
  auto executable = small_executable();
  auto buffer = mx::zeros({1, 2, 8, 4});
  mx::eval(buffer);
  auto view = mx::slice(buffer, {0, 0, 2, 0}, {1, 2, 5, 4});
  mx::eval(view);
  auto out = execute(executable, {row_of(1), mx::array(2), std::move(buffer)}, {{1, 2, 8, 4}});
  mx::eval(out);
  EXPECT_EQ(mx::max(mx::abs(view)).item<float>(), 0.0f);
}

TEST(Plan, TwoRunsFromOneStateDoNotDisturbEachOther) {
  auto executable = small_executable();
  auto buffer = mx::zeros({1, 2, 8, 4});
  mx::eval(buffer);
  auto a = execute(executable, {row_of(1), mx::array(2), buffer}, {{1, 2, 8, 4}});
  auto b = execute(executable, {row_of(-9), mx::array(2), buffer}, {{1, 2, 8, 4}});
  mx::eval(a[1], b[1]);
  EXPECT_LT(
      largest_difference(
          mx::slice(a[1], {0, 0, 2, 0}, {1, 2, 3, 4}), mx::reshape(a[0], {1, 2, 1, 4})),
      1e-6f);
  EXPECT_LT(
      largest_difference(
          mx::slice(b[1], {0, 0, 2, 0}, {1, 2, 3, 4}), mx::reshape(b[0], {1, 2, 1, 4})),
      1e-6f);
}

TEST(Plan, AGrownStateKeepsItsContentsAndIsZeroBeyond) {
  auto executable = small_executable();
  auto buffer = mx::reshape(mx::arange(1.0f, 65.0f), {1, 2, 8, 4});
  auto before = mx::array(buffer);
  auto out = execute(executable, {row_of(1), mx::array(8), buffer}, {{1, 2, 12, 4}});
  EXPECT_EQ(largest_difference(mx::slice(out[1], {0, 0, 0, 0}, {1, 2, 8, 4}), before), 0.0f);
  EXPECT_LT(
      largest_difference(
          mx::slice(out[1], {0, 0, 8, 0}, {1, 2, 9, 4}), mx::reshape(out[0], {1, 2, 1, 4})),
      1e-6f);
  EXPECT_EQ(mx::max(mx::abs(mx::slice(out[1], {0, 0, 9, 0}, {1, 2, 12, 4}))).item<float>(), 0.0f);
}

TEST(Plan, AStateMayBeginEmptyAndMayBeStrided) {
  auto executable = small_executable();
  auto out =
      execute(executable, {row_of(1), mx::array(0), mx::zeros({1, 2, 0, 4})}, {{1, 2, 4, 4}});
  EXPECT_GT(mx::max(mx::abs(out[1])).item<float>(), 0.0f);

  auto strided = mx::slice(
      mx::reshape(mx::arange(128.0f), {1, 2, 16, 4}), {0, 0, 0, 0}, {1, 2, 16, 4}, {1, 1, 2, 1});
  auto expected = mx::array(strided);
  out = execute(executable, {row_of(1), mx::array(7), strided}, {{1, 2, 8, 4}});
  EXPECT_EQ(
      largest_difference(
          mx::slice(out[1], {0, 0, 0, 0}, {1, 2, 7, 4}),
          mx::slice(expected, {0, 0, 0, 0}, {1, 2, 7, 4})),
      0.0f);
}

/// Runs `count` times on a machine where a run takes `all` or `one` seconds; how often one thread
/// alone ran.
int alone(Width& width, int count, double all, double one) {
  int times = 0;
  for (int i = 0; i < count; ++i) {
    auto choice = width.next();
    bool is_one = choice == Width::Choice::one;
    times += is_one;
    width.note(choice, is_one ? one : all);
  }
  return times;
}

TEST(Width, TheTeamRunsWhatItRunsFasterAndTrialsBecomeRare) {
  Width width;
  EXPECT_LE(alone(width, 5000, 1.0, 1.8), 12);
}

TEST(Width, OneThreadTakesOverOnABusyMachineAndTheTeamReturnsAfterwards) {
  Width width;
  alone(width, 100, 1.0, 1.8);
  EXPECT_GT(alone(width, 200, 9.0, 1.8), 150);
  EXPECT_LT(alone(width, 4000, 1.0, 1.8), 2500);
  EXPECT_LE(alone(width, 1000, 1.0, 1.8), 5);
}

TEST(Width, EqualTimesChangeNothing) {
  Width width;
  EXPECT_LE(alone(width, 1000, 1.0, 1.0), 10);
}

TEST(Split, TheFirstHalfHasTheWantedOutputsAndTheSecondTheRest) {
  auto fn = [](const Arrays& in) {
    auto shared = node(op_named("rms_norm"), {in[0], weight()}, {{"eps", 1e-6}})[0];
    auto row = mx::reshape(shared, {1, 2, 1, 4});
    auto buffer = node(op_named("kv_update"), {in[2], row, in[1]})[0];
    auto late = node(op_named("rms_norm"), {shared, weight()}, {{"eps", 1e-3}})[0];
    return Arrays{late, buffer};
  };
  auto graph = trace(fn, example(8));
  graph[graph.inputs[2].node].attrs.set("varies", int64_t{1});
  std::vector<std::string> reasons;
  auto step = Step::make(graph, true, reasons);
  ASSERT_TRUE(step) << reasons[0];
  ASSERT_EQ(step->plans().size(), 2u);
  EXPECT_EQ(step->plans()[0]->launches.size(), 2u);
  EXPECT_EQ(step->plans()[1]->launches.size(), 1u);

  Arrays in{row_of(2), mx::array(1), mx::zeros({1, 2, 8, 4})};
  auto expected = fn({in[0], in[1], mx::array(in[2])});
  auto out = (*step)(in, {{1, 2, 8, 4}}, {});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_LT(largest_difference(out[1], expected[1]), 1e-6f);
  EXPECT_LT(largest_difference(out[0], expected[0]), 1e-5f);
}

} // namespace
} // namespace zmlx
