// tests/cpp/nvrtc_test.cpp: every CUDA kernel that an op's cases ask for compiles, without a GPU.
#include "zmlx/runtime/cuda/nvrtc.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <future>
#include <map>
#include <set>
#include <stdexcept>

#include "zmlx/graph/capture.h"
#include "zmlx/ops/op.h"

namespace zmlx {
namespace {

using Sources = std::map<std::string, std::set<std::string>>;

Sources instantiations(const std::vector<mx::Dtype>& dtypes, const cuda::Device& device) {
  Sources sources;
  for (auto* op : all_ops()) {
    for (auto& example : op->cases) {
      for (auto dtype : dtypes) {
        Types in;
        for (auto& a : example.inputs(dtype)) {
          in.push_back(type_of(a));
        }
        auto out = op->types(in, example.attrs);
        auto kernel = op->cuda ? op->cuda(in, out, example.attrs, device) : cuda::Kernel{};
        for (auto& launch : kernel.launches) {
          sources[launch.source].insert(launch.kernel);
        }
      }
    }
  }
  return sources;
}

void compile_all(const std::vector<mx::Dtype>& dtypes, const cuda::Device& device) {
  if (std::string why; cuda::nvrtc_version(&why).empty()) {
    GTEST_SKIP() << why;
  }
  for (auto& [source, names] : instantiations(dtypes, device)) {
    std::vector<std::string> list(names.begin(), names.end());
    auto binary = cuda::compile(source, list, device.architecture);
    EXPECT_EQ(binary.names.size(), list.size()) << source;
    EXPECT_FALSE(binary.cubin.empty()) << source;
  }
}

TEST(Nvrtc, every_kernel_compiles_for_hopper) {
  compile_all({mx::float32, mx::float16, mx::bfloat16}, {90, 132, 227 * 1024});
}

// Dtypes differ in a few primitives alone, which Hopper's programs have all been through.
TEST(Nvrtc, kernels_compile_for_ampere_and_blackwell) {
  compile_all({mx::bfloat16}, {80, 108, 163 * 1024});
  compile_all({mx::bfloat16}, {100, 148, 227 * 1024});
}

TEST(Nvrtc, what_does_not_compile_is_told_with_the_compilers_words) {
  if (cuda::nvrtc_version().empty()) {
    GTEST_SKIP() << "NVRTC is not installed";
  }
  try {
    cuda::compile("base.cuh", {"no_such_kernel<bf16>"}, 90);
    FAIL() << "it compiled";
  } catch (const std::runtime_error& error) {
    std::string text = error.what();
    EXPECT_NE(text.find("[cuda] base.cuh does not compile"), std::string::npos) << text;
    EXPECT_NE(text.find("no_such_kernel"), std::string::npos) << text;
  }
}

} // namespace
} // namespace zmlx
