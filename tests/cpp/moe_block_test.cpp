// tests/cpp/moe_block_test.cpp: a mixture of experts in one op is its router and its experts.
#include <cstring>

#include "op_testing.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

using namespace testing;

constexpr std::ptrdiff_t router_inputs = 5; // x, the norm's weight, codes, scales, biases

/// The case of that name, whose router is quantised.
const Case& example(const std::string& name) {
  for (auto& one : op_named("moe_block").cases) {
    if (one.name == name) {
      return one;
    }
  }
  throw std::invalid_argument(name);
}

Attrs router_attrs(const Attrs& attrs) {
  return weight_attrs(
      static_cast<int>(attrs.integer("router_bits")),
      static_cast<int>(attrs.integer("router_group_size")),
      {{"norm", int64_t{1}},
       {"k", attrs.integer("k")},
       {"normalize", attrs.integer("normalize")},
       {"eps", attrs.real("eps")},
       {"exact", attrs.integer("exact", 0)}});
}

/// Bytes of an array's elements as a kernel gave them.
mx::array array_of(const std::vector<std::byte>& bytes, const Type& type) {
  mx::Shape shape(type.shape.begin(), type.shape.end());
  if (type.dtype == Dtype::u32) {
    return mx::array(reinterpret_cast<const uint32_t*>(bytes.data()), shape, mx::uint32);
  }
  return mx::array(reinterpret_cast<const float*>(bytes.data()), shape, mx::float32);
}

TEST(MoeBlock, GivesTheBitsOfItsRouterAndItsExperts) {
  auto& block = op_named("moe_block");
  auto& router = op_named("moe_router");
  auto& mlp = op_named("moe_mlp");
  for (auto* name : {"decode", "decode 8 bit", "prompt", "exact"}) {
    for (bool int8 : {false, true}) {
      auto attrs = example(name).attrs;
      if (int8) { // of the experts: the router is exact
        attrs.set("activations", std::string("int8"));
      }
      const Arrays in = example(name).inputs(mx::float32);
      Team team(2);
      const Arrays router_in(in.begin(), in.begin() + router_inputs);
      const auto routed = run_kernel(router, router_in, router_attrs(attrs), team);
      const auto types = router.types(types_of(router_in), router_attrs(attrs));
      Arrays experts;
      for (size_t i = 0; i < routed.size(); ++i) {
        experts.push_back(array_of(routed[i], types[i]));
      }
      experts.insert(experts.end(), in.begin() + router_inputs, in.end());
      const auto want = run_kernel(mlp, experts, attrs, team)[0];
      const auto got = run_kernel(block, in, attrs, team)[0];
      ASSERT_EQ(got.size(), want.size()) << name;
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size()), 0) << name << ", int8 " << int8;
    }
  }
}

TEST(MoeBlock, HasNoKernelWhereItsPartsHaveNone) {
  auto& op = op_named("moe_block");
  auto attrs = example("one").attrs;
  attrs.set("k", int64_t{65});
  const Type x{Dtype::f32, {1, 8}};
  const Type w{Dtype::f32, {100, 8, 8}};
  const Types in = {x, {Dtype::f32, {8}}, {Dtype::f32, {100, 8}}, w, w, w};
  EXPECT_FALSE(op.cpu(in, op.types(in, attrs), attrs).run); // more than 64 of the experts
}

TEST(MoeBlock, SaysInWordsWhatDoesNotFit) {
  auto& op = op_named("moe_block");
  const auto attrs = example("one").attrs;
  auto type = [](Shape shape, Dtype dtype = Dtype::f32) { return Type{dtype, shape}; };
  auto message = [&](const Types& in, const Attrs& of) {
    return message_of([&] { op.types(in, of); });
  };
  auto with = [&](const char* key, Attr value) { return Attrs(attrs).set(key, std::move(value)); };
  const Type w = type({4, 8, 8});
  const Types fits = {type({2, 8}), type({8}), type({4, 8}), w, w, w};
  EXPECT_EQ(message(fits, attrs), "");
  EXPECT_EQ(
      message({fits.begin(), fits.end() - 1}, attrs), "[moe_block] expected 6 inputs but got 5.");
  EXPECT_EQ(
      message(fits, with("residual", int64_t{1})), "[moe_block] expected 7 inputs but got 6.");
  EXPECT_EQ(
      message(fits, with("k", int64_t{5})),
      "[moe_router] k must lie between 1 and 4 experts but got 5.");
  EXPECT_EQ(
      message(fits, with("router_mode", std::string("fp4"))),
      "[moe_block] mode must be affine, mxfp4, mxfp8, nvfp4 or none but got fp4.");
  EXPECT_EQ(
      message(fits, with("activation", std::string("relu"))),
      "[moe_mlp] activation must be silu but got relu.");
}

} // namespace
} // namespace zmlx
