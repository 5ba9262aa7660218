// tests/cpp/linear_test.cpp: what linear, mlp, moe_mlp and embedding say about inputs that do not
// fit.
#include <gtest/gtest.h>

#include <string>

#include "op_testing.h"

namespace zmlx {
namespace {

using testing::message_of;

Type f32(Shape shape) {
  return {Dtype::f32, shape};
}

/// Types of a weight of four bits in groups of 32.
Types quantised(int64_t n, int64_t k) {
  return {{Dtype::u32, {n, k / 8}}, f32({n, k / 32}), f32({n, k / 32})};
}

Types join(std::initializer_list<Types> parts) {
  Types all;
  for (auto& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

Attrs dense(Attrs more = {}) {
  return more.set("mode", std::string("none")).set("activation", std::string("silu"));
}

Attrs affine(int64_t bits, int64_t group, Attrs more = {}) {
  return dense(more).set("mode", std::string("affine")).set("bits", bits).set("group_size", group);
}

struct Mistake {
  const char* op;
  Types in;
  Attrs attrs;
  const char* message;
};

const Attrs residual = {{"residual", int64_t{1}}};
const Attrs norm = {{"norm", int64_t{1}}};
const Type chosen = {Dtype::u32, {2, 2}};

const Mistake mistakes[] = {
    {"linear",
     {f32({1, 8}), f32({4, 8})},
     Attrs{{"mode", std::string("fp4")}},
     "[linear] mode must be affine, mxfp4, mxfp8, nvfp4 or none but got fp4."},
    {"linear",
     {},
     affine(4, 64, {}).set("mode", std::string("mxfp4")),
     "[linear] mode mxfp4 has bits=4 and group_size=32 but got bits=4 and group_size=64."},
    {"linear",
     {f32({1, 64}), {Dtype::u32, {4, 8}}, f32({4, 2})},
     affine(4, 32).set("mode", std::string("mxfp4")),
     "[linear] weight scales must be uint8 but got float32."},
    {"embedding",
     {{Dtype::i32, {1}}, {Dtype::u32, {4, 8}}, {Dtype::u8, {4, 2}}},
     affine(4, 32).set("mode", std::string("mxfp4")).set("dtype", std::string("int8")),
     "[embedding] dtype must be float32, float16 or bfloat16 but got int8."},
    {"linear", {}, affine(7, 32), "[linear] bits must be 2, 3, 4, 5, 6 or 8 but got 7."},
    {"linear", {}, affine(4, 16), "[linear] group_size must be 32, 64 or 128 but got 16."},
    {"linear",
     {},
     dense({{"outputs", int64_t{0}}}),
     "[linear] outputs must be at least 1 but got 0."},
    {"linear",
     {},
     dense({{"outputs", int64_t{2}}, {"residual", int64_t{1}}}),
     "[linear] a residual needs outputs=1 but got outputs=2."},
    {"linear", {f32({1, 8})}, dense(), "[linear] expected 2 inputs but got 1."},
    {"linear",
     {{Dtype::i32, {1, 8}}, f32({4, 8})},
     dense(),
     "[linear] x must be float32, float16 or bfloat16 but got int32."},
    {"linear",
     {f32({}), f32({4, 8})},
     dense(),
     "[linear] x must have at least 1 axis but got a number."},
    {"linear",
     {f32({1, 8}), f32({4, 9})},
     dense(),
     "[linear] weight must have x's last axis, 8, for its own but is (4, 9)."},
    {"linear",
     {f32({1, 8}), f32({4, 8, 1})},
     dense(),
     "[linear] weight must have 2 axes but got float32(4, 8, 1)."},
    {"linear",
     {f32({1, 8}), {Dtype::f16, {4, 8}}},
     dense(),
     "[linear] weight must be float32 but got float16."},
    {"linear",
     {f32({1, 8}), f32({9}), f32({4, 8})},
     dense(norm),
     "[linear] norm_weight must have shape (8,) but got (9,)."},
    {"linear",
     {f32({1, 8}), f32({4, 8}), f32({1, 5})},
     dense(residual),
     "[linear] residual must have shape (1, 4) but got (1, 5)."},
    {"linear",
     {f32({1, 8}), f32({4, 8}), f32({5})},
     dense({{"bias", int64_t{1}}}),
     "[linear] bias must have shape (4,) but got (5,)."},
    {"linear",
     join({{f32({1, 64})}, {f32({4, 8}), f32({4, 2}), f32({4, 2})}}),
     affine(4, 32),
     "[linear] weight must be uint32 but got float32."},
    {"linear",
     {f32({1, 64}), {Dtype::u32, {4, 9}}, f32({4, 2}), f32({4, 2})},
     affine(4, 32),
     "[linear] weight must have shape (4, 8) but got (4, 9)."},
    {"linear",
     {f32({1, 64}), {Dtype::u32, {4, 8}}, f32({4, 2}), f32({4, 3})},
     affine(4, 32),
     "[linear] weight biases must have shape (4, 2) but got (4, 3)."},
    {"linear",
     {{Dtype::f16, {1, 64}}, {Dtype::u32, {4, 8}}, f32({4, 2}), f32({4, 2})},
     affine(4, 32),
     "[linear] weight scales must be float16 but got float32."},
    {"embedding",
     join({{f32({1})}, quantised(4, 64)}),
     affine(4, 32),
     "[embedding] tokens must be integers but got float32."},
    {"embedding",
     {{Dtype::i32, {1, 1, 1, 1, 1, 1, 1, 1}}, f32({4, 8})},
     dense(),
     "[embedding] tokens may have at most 7 axes but got (1, 1, 1, 1, 1, 1, 1, 1)."},
    {"mlp",
     {},
     dense({{"exact", int64_t{1}}}).set("activation", std::string("relu")),
     "[mlp] exact=1 needs activation silu but got relu."},
    {"mlp",
     {f32({}), f32({4, 8}), f32({4, 8}), f32({8, 4})},
     dense(),
     "[mlp] x must have at least 1 axis but got a number."},
    {"mlp",
     {f32({1, 8}), f32({4, 8}), f32({5, 8}), f32({8, 4})},
     dense(),
     "[mlp] gate and up must be (F, 8) and down (D, F) but they are (4, 8), (5, 8) and (8, 4)."},
    {"mlp",
     {f32({1, 8}), f32({4, 8}), f32({4, 8}), f32({8, 4}), f32({1, 9})},
     dense(residual),
     "[mlp] residual must have shape (1, 8) but got (1, 9)."},
    {"moe_mlp",
     {},
     dense().set("activation", std::string("gelu")),
     "[moe_mlp] activation must be silu but got gelu."},
    {"moe_mlp",
     {f32({}), chosen, f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] x and indices must have at least 1 axis but got a number."},
    {"moe_mlp",
     {f32({2, 8}), f32({2, 2}), f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] indices must be uint32 but got float32."},
    {"moe_mlp",
     {f32({2, 8}), chosen, f32({2, 3}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] weights must have shape (2, 2) but got (2, 3)."},
    {"moe_mlp",
     {f32({2, 8}), chosen, f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({2, 8, 4})},
     dense(),
     "[moe_mlp] gate and up must be (E, F, 8) and down (E, D, F) but they are (3, 4, 8), (3, 4, 8) "
     "and (2, 8, 4)."},
};

TEST(LinearOps, SayInWordsWhatDoesNotFit) {
  for (auto& mistake : mistakes) {
    auto& op = op_named(mistake.op);
    EXPECT_EQ(message_of([&] { op.types(mistake.in, mistake.attrs); }), mistake.message);
  }
}

TEST(LinearOps, SayWhichTokenOrExpertDoesNotExist) {
  Team team(2);
  auto table = mx::zeros({4, 8});
  for (int token : {4, -5}) {
    EXPECT_EQ(
        message_of([&] {
          testing::run_kernel(op_named("embedding"), {mx::array({0, token}), table}, dense(), team);
        }),
        "[embedding] tokens must be below the table's 4 rows but one is " + std::to_string(token) +
            ".");
  }
  for (int tokens : {1, 100}) { // few pairs and many are sorted apart
    auto experts = mx::full({tokens, 2}, 3, mx::uint32);
    Arrays in = {
        mx::zeros({tokens, 8}),
        experts,
        mx::zeros({tokens, 2}),
        mx::zeros({3, 4, 8}),
        mx::zeros({3, 4, 8}),
        mx::zeros({3, 8, 4})};
    EXPECT_EQ(
        message_of([&] { testing::run_kernel(op_named("moe_mlp"), in, dense(), team); }),
        "[moe_mlp] indices must be below 3 experts but one is 3.");
  }
}

TEST(LinearOps, CountNegativeTokensFromTheLastRow) {
  auto table = mx::reshape(mx::arange(12, mx::float32), {4, 3});
  auto rows = node(op_named("embedding"), {mx::array({-1, 0}), table}, dense())[0];
  EXPECT_TRUE(mx::array_equal(rows, mx::take(table, mx::array({3, 0}), 0)).item<bool>());
}

} // namespace
} // namespace zmlx
