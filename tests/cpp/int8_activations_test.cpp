// tests/cpp/int8_activations_test.cpp: ops that round their activations to 8 bits.
#include "op_testing.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

using namespace testing;

const Attrs int8 = {{"activations", std::string("int8")}};

Attrs with_int8(Attrs attrs) {
  return attrs.set("activations", std::string("int8"));
}

/// The relative distance of two arrays' elements, in root mean squares.
double distance(const mx::array& a, const mx::array& b) {
  auto square = [](const mx::array& x) { return mx::mean(mx::square(x)); };
  return mx::sqrt(square(a - b) / square(b)).item<float>();
}

TEST(Int8Activations, OfMlpsMatchTheirReferenceAndAreNotExact) {
  for (auto* name : {"mlp", "moe_mlp", "moe_block"}) {
    auto* op = find_op(name);
    int tried = 0;
    for (auto& example : op->cases) {
      auto mode = example.attrs.text("mode");
      if (mode == "none" || mode == "mxfp8" || example.attrs.integer("exact", 0)) {
        continue;
      }
      auto inputs = example.inputs(mx::float32);
      if (inputs[0].size() == 0) {
        continue;
      }
      ++tried;
      const Attrs attrs = with_int8(example.attrs);
      auto want = op->reference(inputs, attrs)[0];
      auto exact = op->reference(inputs, example.attrs)[0];
      for (int size : {1, 3}) {
        Team team(size);
        auto bytes = run_kernel(*op, inputs, attrs, team);
        mx::array got(reinterpret_cast<const float*>(bytes[0].data()), want.shape());
        // A hidden value on the border of two integers may go either way.
        EXPECT_LT(distance(got, want), 2e-3) << name << ", " << example.name;
        EXPECT_GT(distance(got, exact), 2e-3) << name << ", " << example.name;
        EXPECT_LT(distance(got, exact), 5e-2) << name << ", " << example.name;
      }
    }
    EXPECT_GT(tried, 5) << name;
  }
}

TEST(Int8Activations, HaveTheGradientOfExactOnes) {
  auto* op = find_op("linear");
  for (const auto& attrs : {weight_attrs(4, 32), weight_attrs("mxfp4")}) {
    Arrays in = {random_case({3, 64}, mx::float32, 1)};
    push_random_weight(in, {5, 64}, weight_kind("linear", attrs), mx::float32, 2);
    auto gradient = [&](const Attrs& how) {
      auto loss = [&](const Arrays& x) {
        auto all = in;
        all[0] = x[0];
        return Arrays{mx::sum(op->reference(all, how)[0])};
      };
      return mx::vjp(loss, {in[0]}, {mx::array(1.0f)}).second[0];
    };
    expect_close(gradient(with_int8(attrs)), gradient(attrs), 1e-6);
  }
}

TEST(Int8Activations, SayInWordsWhatDoesNotFit) {
  EXPECT_EQ(
      message_of([] {
        product_kind("linear", weight_attrs(4, 64, {{"activations", std::string("int4")}}));
      }),
      "[linear] activations must be exact or int8 but got int4.");
  for (auto attrs : {weight_attrs(0, 0, int8), weight_attrs("mxfp8", int8)}) {
    EXPECT_EQ(
        message_of([&] { product_kind("mlp", attrs); }),
        "[mlp] int8 activations need weights of mode affine, mxfp4 or nvfp4 but got " +
            attrs.text("mode") + ".");
  }
  auto exact = product_kind("mlp", weight_attrs(0, 0, {{"activations", std::string("exact")}}));
  EXPECT_EQ(exact.activations, cpu::Activations::exact);
}

TEST(Int8Activations, HaveNoKernelOnAGpu) {
  const cuda::Device device{90, 132, 227 * 1024};
  for (auto* name : {"linear", "mlp", "moe_mlp", "moe_block"}) {
    auto* op = find_op(name);
    auto& example = op->cases[0];
    auto in = types_of(example.inputs(mx::bfloat16));
    auto out = op->types(in, example.attrs);
    EXPECT_FALSE(op->cuda(in, out, example.attrs, device).launches.empty()) << name;
    EXPECT_TRUE(op->cuda(in, out, with_int8(example.attrs), device).launches.empty()) << name;
  }
}

} // namespace
} // namespace zmlx
