// tests/cpp/moe_router_test.cpp: which experts are chosen: ties, NaN, infinities, any k.
#include <numeric>

#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

struct Choice {
  std::vector<uint32_t> indices;
  std::vector<float> weights;
};

/// Routes one token whose logits are given: x is one, the router a column of logits.
Choice route(std::vector<float> logits, int k, bool normalize, mx::Dtype dtype = mx::float32) {
  auto router = mx::array(logits.data(), {static_cast<int>(logits.size()), 1}, mx::float32);
  Attrs attrs = {
      {"k", int64_t{k}}, {"normalize", int64_t{normalize}}, {"mode", std::string("none")}};
  auto out =
      node(op_named("moe_router"), {mx::ones({1, 1}, dtype), mx::astype(router, dtype)}, attrs);
  mx::eval(out);
  auto* indices = out[0].data<uint32_t>();
  return {{indices, indices + k}, floats(out[1])};
}

TEST(MoeRouter, ChoosesTheLargestInOrder) {
  auto c = route({0, 3, 1, 2}, 3, false);
  EXPECT_EQ(c.indices, (std::vector<uint32_t>{1, 3, 2}));
  double total = 1 + std::exp(3.0) + std::exp(1.0) + std::exp(2.0);
  EXPECT_NEAR(c.weights[0], std::exp(3.0) / total, 1e-6);
  EXPECT_NEAR(c.weights[1], std::exp(2.0) / total, 1e-6);
  EXPECT_NEAR(c.weights[2], std::exp(1.0) / total, 1e-6);
}

TEST(MoeRouter, TakesTheLowerIndexAmongEquals) {
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    auto c = route(std::vector<float>(33, 0.5f), 5, true, dtype);
    EXPECT_EQ(c.indices, (std::vector<uint32_t>{0, 1, 2, 3, 4}));
    for (float w : c.weights) {
      EXPECT_NEAR(w, 0.2, 1e-3);
    }
  }
  auto c = route({1, 5, 2, 5, 5, 2}, 4, false);
  EXPECT_EQ(c.indices, (std::vector<uint32_t>{1, 3, 4, 2}));
}

TEST(MoeRouter, ChoosesDistinctExpertsWhateverTheLogits) {
  const float inf = INFINITY;
  const std::vector<std::vector<float>> rows = {
      std::vector<float>(17, NAN),
      std::vector<float>(17, -inf),
      {1, NAN, 2, 3, 4, NAN, 5},
      {1, inf, 2, 3, inf, 0, 0},
      {1, -inf, -inf, -inf, -inf, -inf, -inf},
      {-1000, -1000, 0, -1000, -1000, -1000, -1000}};
  for (auto& logits : rows) {
    auto c = route(logits, 7, true);
    std::vector<uint32_t> sorted = c.indices;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_EQ(std::unique(sorted.begin(), sorted.end()), sorted.end());
    EXPECT_LT(sorted.back(), logits.size());
  }
}

TEST(MoeRouter, GivesNanWeightsForNanLogits) {
  auto c = route({1, NAN, 2, 3}, 2, true);
  EXPECT_TRUE(std::isnan(c.weights[0]) && std::isnan(c.weights[1]));
}

TEST(MoeRouter, GivesZeroWeightToLogitsOfMinusInfinity) {
  auto c = route({-INFINITY, 2, -INFINITY}, 2, true);
  EXPECT_EQ(c.indices, (std::vector<uint32_t>{1, 0}));
  EXPECT_EQ(c.weights, (std::vector<float>{1, 0}));
}

TEST(MoeRouter, ChoosesAnyNumberOfExperts) {
  std::vector<float> logits(64);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>((i * 37) % 64) / 16;
  }
  for (int k : {1, 2, 31, 32, 33, 64}) {
    auto c = route(logits, k, true);
    EXPECT_NEAR(std::accumulate(c.weights.begin(), c.weights.end(), 0.0), 1, 1e-5);
    for (size_t n = 1; n < c.indices.size(); ++n) {
      EXPECT_GT(logits[c.indices[n - 1]], logits[c.indices[n]]);
    }
  }
}

TEST(MoeRouter, HasNoKernelForMoreThan64OfTheExperts) {
  auto& op = op_named("moe_router");
  Types in = {{Dtype::f32, {2, 8}}, {Dtype::f32, {100, 8}}};
  Attrs attrs = {{"k", int64_t{65}}, {"mode", std::string("none")}};
  EXPECT_FALSE(op.cpu(in, op.types(in, attrs), attrs).run);
}

TEST(MoeRouter, SaysInWordsWhatDoesNotFit) {
  auto& op = op_named("moe_router");
  auto type = [](Shape shape, Dtype dtype = Dtype::f32) { return Type{dtype, shape}; };
  auto message = [&](Types in, Attrs attrs) { return message_of([&] { op.types(in, attrs); }); };
  Attrs dense = {{"k", int64_t{2}}, {"mode", std::string("none")}};
  Attrs affine = {
      {"k", int64_t{2}},
      {"mode", std::string("affine")},
      {"bits", int64_t{4}},
      {"group_size", int64_t{64}}};
  auto k9 = dense;
  k9.set("k", int64_t{9});
  auto fp4 = dense;
  fp4.set("mode", std::string("fp4"));
  EXPECT_EQ(message({type({2, 8})}, dense), "[moe_router] expected 2 inputs but got 1.");
  EXPECT_EQ(
      message({type({2, 8}), type({4, 9})}, dense),
      "[moe_router] router must have x's last axis, 8, for its own but is (4, 9).");
  EXPECT_EQ(
      message({type({2, 8}), type({4, 8})}, k9),
      "[moe_router] k must lie between 1 and 4 experts but got 9.");
  EXPECT_EQ(
      message({type({2, 8}), type({4, 8})}, fp4),
      "[moe_router] mode must be affine, mxfp4, mxfp8, nvfp4 or none but got fp4.");
  EXPECT_EQ(
      message({type({2, 96}), type({4, 12}, Dtype::u32), type({4, 1}), type({4, 1})}, affine),
      "[moe_router] router must have shape (4, 8) but got (4, 12).");
  EXPECT_EQ(
      message({type({2, 64}), type({4, 8}, Dtype::i32), type({4, 1}), type({4, 1})}, affine),
      "[moe_router] router must be uint32 but got int32.");
  EXPECT_EQ(
      message(
          {type({2, 64}), type({4, 8}, Dtype::u32), type({4, 1}, Dtype::f16), type({4, 1})},
          affine),
      "[moe_router] router scales must be float32 but got float16.");
}

} // namespace
} // namespace zmlx
