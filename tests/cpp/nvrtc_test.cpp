// tests/cpp/nvrtc_test.cpp: every CUDA kernel that an op's cases ask for compiles, without a GPU.
#include "zmlx/runtime/cuda/nvrtc.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <future>
#include <map>
#include <set>
#include <stdexcept>

#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/ops/op.h"
#include "zmlx/runtime/elementwise_gpu.h"

namespace zmlx {
namespace {

using Sources = std::map<std::pair<std::string, std::string>, std::set<std::string>>;

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
          // Generated texts differ in loads and stores alone.
          bool generated = !launch.text().empty();
          if (!generated || (dtype == mx::bfloat16 && device.architecture == 90)) {
            sources[{launch.source, launch.text()}].insert(launch.kernel);
          }
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
  for (auto& [of, names] : instantiations(dtypes, device)) {
    auto& [source, text] = of;
    std::vector<std::string> list(names.begin(), names.end());
    auto binary = cuda::compile(source, list, device.architecture, text);
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

/// A kernel of all functions of the language that take this dtype, and of a conversion to each.
lang::Program every_function(Dtype dtype) {
  std::vector<lang::Expr> roots;
  std::vector<std::string> names = {"a", "b", "c"};
  for (auto& row : lang::functions()) {
    if (row.typing == lang::Typing::bits && is_floating(dtype)) {
      continue;
    }
    std::vector<lang::Expr> args;
    for (int i = 0; i < row.arity; ++i) {
      args.push_back(lang::input(names[static_cast<size_t>(i)]));
    }
    roots.push_back(lang::call(row.name, args));
  }
  for (int to = 0; to <= static_cast<int>(Dtype::f32); ++to) {
    roots.push_back(lang::cast(lang::input("a"), static_cast<Dtype>(to)));
  }
  return lang::lower(roots, names, {{dtype}, {dtype}, {dtype}});
}

TEST(Nvrtc, expressions_compile_in_every_dtype_and_way_of_access) {
  if (std::string why; cuda::nvrtc_version(&why).empty()) {
    GTEST_SKIP() << why;
  }
  for (int i = 0; i <= static_cast<int>(Dtype::f32); ++i) {
    auto dtype = static_cast<Dtype>(i);
    auto program = every_function(dtype);
    lang::ElementwiseText kernel{program, {dtype, dtype, dtype}, {}};
    for (auto step : program.results) {
      kernel.out.push_back(program.steps[static_cast<size_t>(step)].type.dtype);
    }
    CudaTexts texts;
    // Contiguous, one row for all, and transposed.
    auto made = elementwise_cuda(kernel, texts, {4, 5}, {{5, 1}, {0, 1}, {1, 4}}, {90});
    auto& launch = made.launches[0];
    EXPECT_NO_THROW(cuda::compile(launch.source, {launch.kernel}, 90, launch.text()))
        << name_of(dtype);
  }
}

TEST(Nvrtc, an_expressions_text_depends_on_the_way_of_access_alone) {
  auto program = lang::lower({lang::input("a") + lang::input("b")}, {"a", "b"}, {{}, {}});
  lang::ElementwiseText kernel{program, {Dtype::f32, Dtype::f32}, {Dtype::f32}};
  CudaTexts texts;
  auto launch = [&](const Shape& shape, const std::vector<Strides>& strides) {
    return elementwise_cuda(kernel, texts, shape, strides, {90, 132}).launches[0];
  };
  auto one = launch({4, 5, 1}, {{5, 1, 1}, {0, 0, 0}});
  auto other = launch({700, 31, 60}, {{1860, 60, 1}, {0, 0, 0}});
  EXPECT_EQ(one.text(), other.text()); // contiguous, and one value
  CudaTexts again; // of an equal kernel that was made anew
  auto twin = elementwise_cuda(kernel, again, {3}, {{1}, {0}}, {90, 132}).launches[0];
  EXPECT_EQ(twin.generated, one.generated); // and so one function
  EXPECT_EQ(one.arguments.size(), 4u);
  EXPECT_NE(one.text(), launch({4, 5}, {{5, 1}, {1, 4}}).text());
  EXPECT_EQ(one.grid[0], 1u);
  EXPECT_EQ(other.grid[0], 636u);
  auto large = launch({1 << 16, 1 << 16}, {{1 << 16, 1}, {0, 0}});
  EXPECT_EQ(large.kernel, "zmlx_run<uint64_t>");
  EXPECT_EQ(large.grid[0], 16u * 132);
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
    const std::string start =
        "[cuda] base.cuh does not compile for no_such_kernel<bf16>: NVRTC_ERROR_";
    EXPECT_EQ(text.substr(0, start.size()), start) << text;
  }
}

} // namespace
} // namespace zmlx
