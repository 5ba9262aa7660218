// tests/cpp/formula_test.cpp: ops that are written in the kernel language compute their reference:
// as graphs, and as Metal kernels that the MSL front end runs on the CPU. For CUDA they are printed
// here, and run by cuda_kernels_test.cpp.
#include "zmlx/ops/formula.h"

#include "op_testing.h"
#include "zmlx/runtime/formula_metal.h"
#include "zmlx/runtime/jit.h"

namespace zmlx {
namespace {

using testing::expect_close;
using testing::in_float32;
using testing::types_of;

struct Param {
  const Op* op;
  mx::Dtype dtype;
};

std::vector<Param> params() {
  std::vector<Param> out;
  for (auto* op : all_ops()) {
    for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      if (formula_of(*op)) {
        out.push_back({op, dtype});
      }
    }
  }
  return out;
}

class FormulaTest : public ::testing::TestWithParam<Param> {};

TEST_P(FormulaTest, computes_the_reference) {
  auto [op, dtype] = GetParam();
  for (auto& example : op->cases) {
    SCOPED_TRACE(example.name);
    auto inputs = example.inputs(dtype);
    auto types = types_of(inputs);
    if (!formula_of(*op)->fits(types, example.attrs)) {
      continue;
    }
    auto out = op->types(types, example.attrs);
    auto got = formula_of(*op)->graph(inputs, out[0], example.attrs);
    EXPECT_EQ(type_of(got), out[0]);
    auto want = op->reference(in_float32(inputs), example.attrs)[0];
    expect_close(got, want, testing::tolerance_of(dtype));
  }
}

TEST_P(FormulaTest, computes_the_reference_as_a_metal_kernel) {
  if (!jit::available()) {
    GTEST_SKIP() << "there is no C++ compiler";
  }
  auto [op, dtype] = GetParam();
  size_t ran = 0;
  for (auto& example : op->cases) {
    SCOPED_TRACE(example.name);
    auto inputs = example.inputs(dtype);
    for (auto& x : inputs) {
      x = mx::contiguous(x);
    }
    mx::eval(inputs);
    auto types = types_of(inputs);
    if (!formula_of(*op)->fits(types, example.attrs)) {
      continue;
    }
    auto out = op->types(types, example.attrs);
    auto [views, rows] = formula_metal(*formula_of(*op), inputs, out[0], example.attrs);
    auto got = MetalKernel(rows.source, false)(views, rows.call, mx::Device::cpu)[0];
    EXPECT_EQ(type_of(got), out[0]);
    auto want = op->reference(in_float32(inputs), example.attrs)[0];
    expect_close(got, want, testing::tolerance_of(dtype));
    ++ran;
  }
  EXPECT_GT(ran, 0u);
}

TEST_P(FormulaTest, has_a_cuda_kernel_for_every_case) {
  auto [op, dtype] = GetParam();
  for (auto& example : op->cases) {
    auto in = types_of(example.inputs(dtype));
    auto out = op->types(in, example.attrs);
    if (formula_of(*op)->fits(in, example.attrs)) {
      EXPECT_TRUE(op->cuda(in, out, example.attrs, {})) << example.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Ops, FormulaTest, ::testing::ValuesIn(params()), [](auto& info) {
  std::ostringstream dtype;
  dtype << info.param.dtype;
  return info.param.op->name + "_" + dtype.str();
});

} // namespace
} // namespace zmlx
