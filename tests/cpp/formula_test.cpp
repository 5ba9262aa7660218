// tests/cpp/formula_test.cpp: ops that are written in the kernel language compute their reference,
// and their kernels are printed for GPUs.
#include "zmlx/ops/formula.h"

#include "op_testing.h"

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
