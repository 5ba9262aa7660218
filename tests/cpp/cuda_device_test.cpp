// tests/cpp/cuda_device_test.cpp: every op that has CUDA kernels, every case, every dtype, on the
// GPU of this machine.
#include "op_testing.h"
#include "zmlx/runtime/cuda/mlx_stream.h"

namespace zmlx {
namespace {

using namespace testing;

class CudaOps : public ::testing::TestWithParam<const Op*> {
 protected:
  void SetUp() override {
    if (auto why = cuda::why_not(); !why.empty()) {
      GTEST_SKIP() << why;
    }
    mx::set_default_device(mx::Device::cpu);
  }
};

/// Indices may come in any order, and where activations are rounded nearly equal values may be
/// chosen either way.
bool is_choice(const mx::array& x, mx::Dtype dtype) {
  return x.dtype() == mx::uint32 && dtype != mx::float32;
}

TEST_P(CudaOps, match_their_references_in_float32) {
  const Op& op = *GetParam();
  const auto device = cuda::device();
  for (auto& example : op.cases) {
    for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
      SCOPED_TRACE(op.name + ", " + example.name + ", " + name_of(dtype_of(dtype)));
      auto inputs = example.inputs(dtype);
      mx::eval(inputs);
      auto in = types_of(inputs);
      if (!op.cuda(in, op.types(in, example.attrs), example.attrs, *device)) {
        continue;
      }
      auto want = op.reference(in_float32(inputs), example.attrs);
      mx::eval(want);
      auto got = node(op, inputs, example.attrs, mx::Device::gpu);
      mx::eval(got);
      ASSERT_EQ(got.size(), want.size());
      for (size_t i = 0; i < got.size(); ++i) {
        if (!is_choice(got[i], dtype)) {
          SCOPED_TRACE("output " + std::to_string(i));
          auto sorted = [&](const mx::array& x) {
            bool indices = got[i].dtype() == mx::uint32 || (i && got[i - 1].dtype() == mx::uint32);
            return indices && x.ndim() ? mx::sort(x, -1) : x;
          };
          expect_close(sorted(mx::copy(got[i])), sorted(want[i]), tolerance_of(dtype));
        }
      }
    }
  }
}

std::vector<const Op*> ops_with_kernels() {
  std::vector<const Op*> ops;
  for (auto* op : all_ops()) {
    if (op->cuda) {
      ops.push_back(op);
    }
  }
  return ops;
}

INSTANTIATE_TEST_SUITE_P(All, CudaOps, ::testing::ValuesIn(ops_with_kernels()), [](auto& info) {
  return info.param->name;
});

} // namespace
} // namespace zmlx
