// tests/cpp/msl_test.cpp: the MSL front end: what it rewrites and refuses, its programs for CUDA,
// and the kernels that we print for Metal, run through it on the CPU.
#include <gtest/gtest.h>

#include <cmath>

#include "mlx/mlx.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/print.h"
#include "zmlx/kernel/msl/program.h"
#include "zmlx/kernel/msl/rewrite.h"
#include "zmlx/kernel/msl/tokens.h"
#include "zmlx/runtime/cuda/nvrtc.h"
#include "zmlx/runtime/elementwise.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/metal_kernel.h"

namespace zmlx {
namespace {

std::string of(const char* text, bool small = true) {
  msl::Needs needs;
  return msl::rewritten(text, true, small, needs);
}

TEST(Msl, literals_and_address_spaces_become_cpps) {
  EXPECT_EQ(
      of("x = 1.0 + .5e-3 + 2.0h + 3bf + 0x1F + 7u;"),
      "x = 1.0f + .5e-3f + half(2.0f) + bfloat(3.0f) + 0x1F + 7u;");
  EXPECT_EQ(of("const device float* p = q;"), "const  float* p = q;");
  EXPECT_EQ(of("char c = (unsigned char)x;"), "zmlx_char c = (unsigned char)x;");
  EXPECT_EQ(of("int i [[maybe_unused]];"), "int i ;");
  EXPECT_EQ(of("s = \"1.0 device\"; // 1.0\n"), "s = \"1.0 device\"; // 1.0\n");
}

TEST(Msl, threadgroup_variables_are_told_from_pointers) {
  EXPECT_EQ(of("threadgroup float a[8], b;"), "zmlx_threadgroup float a[8], b;");
  EXPECT_EQ(of("threadgroup float* p = a;"), " float* p = a;");
  EXPECT_EQ(of("f((threadgroup float*)a);"), "f(( float*)a);");
}

TEST(Msl, swizzles_become_calls_where_they_are_none_of_the_kernels_own) {
  EXPECT_EQ(of("v.xy = w.bgr;"), "v.zmlx_set_xy() = w.zmlx_zyx();");
  EXPECT_EQ(of("struct P { float xy; }; p.xy = v.x;"), "struct P { float xy; }; p.xy = v.x;");
}

TEST(Msl, choices_and_divisions_are_wrapped_as_they_bind) {
  EXPECT_EQ(of("y = a / b.x[i] * c;"), "y = a / zmlx_divisor(b.x[i]) * c;");
  EXPECT_EQ(
      of("y = a % (int)b - f<T>(c) / -d;"),
      "y = a % zmlx_divisor((int)b) - f<T>(c) / zmlx_divisor(-d);");
  EXPECT_EQ(of("y /= a + b; z = a / 32;"), "y /= zmlx_divisor(a + b); z = a / 32;");
  EXPECT_EQ(
      of("if (p) y = a < b ? c : d;"),
      "if (p) y = zmlx_choose(a < b , [&] { return  c ; }, [&] { return  d; });");
  EXPECT_EQ(
      of("f(a ? b : c ? d : e, 1);"),
      "f(zmlx_choose(a , [&] { return  b ; }, [&] { return  zmlx_choose(c , [&] { return  d ; }, [&] { return  e; }); }), 1);");
  EXPECT_EQ(of("y = a ? b : c;", false), "y = a ? b : c;");
  EXPECT_EQ(
      of("return x == 0 ? 1 / n : n;"),
      "return zmlx_choose(x == 0 , [&] { return  1 / zmlx_divisor(n) ; }, [&] { return  n; });");
}

TEST(Msl, choices_among_a_types_members_stay) {
  msl::Needs needs;
  EXPECT_EQ(
      msl::rewritten("struct A { int n = B ? 1 : 2; };", false, true, needs),
      "struct A { int n = B ? 1 : 2; };");
  EXPECT_EQ(
      msl::rewritten("struct A { int f() { return a ? b : c; } };", false, true, needs),
      "struct A { int f() { return zmlx_choose(a , [&] { return  b ; }, [&] { return  c; }); } };");
}

TEST(Msl, a_mistake_is_shown_with_a_caret) {
  msl::Source source{"k", {}, {"out"}, "int i;\n\tsampler s;\n"};
  try {
    msl::program(source, {{}, {Dtype::f32}, {}});
    FAIL() << "it was taken";
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(
        error.what(),
        "[k] source, line 2: textures and samplers are not supported\n\tsampler s;\n\t^");
  }
}

TEST(Msl, compilers_words_are_found_in_the_authors_lines) {
  msl::Source source{"k", {}, {}, "one\n  two three\n", "head\n"};
  EXPECT_EQ(
      msl::explained(source, "zmlx_source:2:3: error: 'three' was not declared\n  noise\n"),
      "source, line 2: 'three' was not declared\n  two three\n      ^");
  EXPECT_EQ(
      msl::explained(source, "zmlx_header:1:1:   required from here\nkernel.cpp:9: error: no\n"),
      "header, line 1: no\nhead\n^");
  EXPECT_EQ(
      msl::explained(source, "zmlx_source(2): error: identifier \"two\" is undefined\n"),
      "source, line 2: identifier \"two\" is undefined\n  two three\n  ^");
  EXPECT_EQ(msl::explained(source, "kernel.cpp:9: error: ours\n"), "");
}

constexpr const char* everything = R"(
  uint i = thread_position_in_grid.x;
  threadgroup T shared[1024];
  threadgroup atomic_uint count;
  shared[thread_index_in_threadgroup] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float4 v = float4(shared[0], 1.0, 2.0, by).wzyx;
  v.xy += 2;
  T s = simd_sum(shared[i % N]) + simd_prefix_exclusive_sum(T(1)) + simd_shuffle_down(T(2), 1);
  s = simd_any(s > 0) ? s : 0.5;
  float4 w = simd_shuffle_xor(v, 1) / max(v, 1.0);
  atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
  atomic_fetch_min_explicit(&count, 1u, memory_order_relaxed);
  atomic_fetch_add_explicit(&out[i], static_cast<float>(s) + metal::exp(w.x) + fma(w.y, 2.0, by),
                            memory_order_relaxed);
  simdgroup_barrier(mem_flags::mem_none);
  out2[i] = popcount(i) + quad_max(i) + ulong(simd_vote::vote_t(simd_ballot(true))) % 7 +
      thread_index_in_simdgroup + simdgroup_index_in_threadgroup + threads_per_grid.y;
)";

TEST(Msl, programs_for_cuda_compile_for_all_architectures) {
  if (std::string why; cuda::nvrtc_version(&why).empty()) {
    GTEST_SKIP() << why;
  }
  msl::Source source{"k", {"x", "by"}, {"out", "out2"}, everything};
  source.header =
      "constant float table[2] = {1.0, 2.0};\ninline half twice(half x) { return 2 * x; }";
  source.atomic_outputs = true;
  auto typed = [](Dtype dtype) {
    return msl::Types{
        {{dtype, 2}, {Dtype::f32, 0}}, {Dtype::f32, Dtype::u32}, {{"T", dtype}, {"N", int64_t{3}}}};
  };
  source.body = everything;
  auto at = source.body.find("out2[i] =");
  source.body.replace(at, 9, "uint sum =");
  source.body += "atomic_store_explicit(&out2[i], sum, memory_order_relaxed);";
  for (auto [dtype, architecture] :
       {std::pair{Dtype::f32, 80}, {Dtype::f16, 90}, {Dtype::bf16, 100}}) {
    auto text = msl::program(source, typed(dtype)).cuda;
    auto binary = cuda::compile("", {"metal::zmlx_kernel"}, architecture, text);
    EXPECT_EQ(binary.names, std::vector<std::string>{"zmlx_kernel"});
  }
  source.body = "out[0] = 1;\nmissing(x);";
  source.atomic_outputs = false;
  try {
    cuda::compile("", {"metal::zmlx_kernel"}, 90, msl::program(source, typed(Dtype::f32)).cuda);
    FAIL() << "it compiled";
  } catch (const std::runtime_error& error) {
    auto text = msl::explained(source, error.what());
    EXPECT_NE(text.find("source, line 2: identifier \"missing\""), std::string::npos)
        << text << error.what();
  }
}

TEST(Msl, threads_of_a_group_wait_for_each_other_on_the_cpu) {
  if (!jit::available()) {
    GTEST_SKIP() << "there is no C++ compiler";
  }
  msl::Source source{"tree", {"x"}, {"y"}};
  source.body = R"(
    threadgroup float shared[256];
    uint i = thread_position_in_threadgroup.x;
    shared[i] = simd_sum(x[thread_position_in_grid.x]);
    for (uint step = 128; step >= 32; step /= 2) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (i < step) {
        shared[i] += shared[i + step];
      }
    }
    if (i == 0) {
      y[threadgroup_position_in_grid.x] = shared[0];
    }
  )";
  MetalCall call{{{100}}, {mx::float32}, {256 * 100, 1, 1}, {256, 1, 1}};
  auto x = mx::arange(0, 256 * 100, mx::float32, mx::Device::cpu);
  auto y = MetalKernel(source)({x}, call, mx::Device::cpu)[0];
  mx::eval(y);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(y.data<float>()[i], 256.0f * (256.0f * static_cast<float>(i) + 127.5f)) << i;
  }
}

class PrintedForMetal : public ::testing::TestWithParam<Dtype> {};

/// All functions of the language that take this dtype, and a conversion to each.
std::vector<lang::Expr> every_function(Dtype dtype) {
  std::vector<lang::Expr> roots;
  for (auto& row : lang::functions()) {
    if (row.typing == lang::Typing::bits && is_floating(dtype)) {
      continue;
    }
    std::vector<lang::Expr> args;
    for (int i = 0; i < row.arity; ++i) {
      args.push_back(lang::input(std::string(1, static_cast<char>('a' + i))));
    }
    roots.push_back(lang::call(row.name, args));
  }
  for (int to = 0; to <= static_cast<int>(Dtype::f32); ++to) {
    roots.push_back(lang::cast(lang::input("a"), static_cast<Dtype>(to)));
  }
  return roots;
}

TEST_P(PrintedForMetal, every_function_computes_what_the_cpus_kernel_computes) {
  if (!jit::available()) {
    GTEST_SKIP() << "there is no C++ compiler";
  }
  auto dtype = GetParam();
  auto roots = every_function(dtype);
  ElementwiseSpec spec{"every", {"a", "b", "c"}, roots};
  auto program = lang::lower(roots, spec.inputs, {{dtype}, {dtype}, {dtype}});
  lang::ElementwiseText text{program, {dtype, dtype, dtype}, {}};
  MetalCall call;
  msl::Source source{"every", {"in0", "in1", "in2"}};
  for (auto step : program.results) {
    text.out.push_back(program.steps[static_cast<size_t>(step)].type.dtype);
    source.outputs.push_back("out" + std::to_string(source.outputs.size()));
    call.output_shapes.push_back({5, 7});
    call.output_dtypes.push_back(mlx_dtype(text.out.back()));
  }
  auto printed = lang::metal_text(text);
  source.body = printed.kernel;
  source.header = printed.prelude;
  call.grid = {35, 1, 1};
  call.threadgroup = {16, 1, 1};

  // Negative values only where conversions to unsigned types and shifts have a meaning for them.
  auto base = mx::reshape(mx::arange(0, 35, mx::float32, mx::Device::cpu), {7, 5}, mx::Device::cpu);
  auto values = is_floating(dtype) ? mx::divide(base, mx::array(4.0f), mx::Device::cpu)
                                   : mx::remainder(base, mx::array(6.0f), mx::Device::cpu);
  auto a = mx::transpose(mx::astype(values, mlx_dtype(dtype), mx::Device::cpu), mx::Device::cpu);
  auto b = mx::broadcast_to(
      mx::astype(mx::arange(0, 7, mx::float32, mx::Device::cpu), mlx_dtype(dtype), mx::Device::cpu),
      {5, 7},
      mx::Device::cpu);
  auto c = mx::broadcast_to(
      mx::astype(mx::array(0.75f), mlx_dtype(dtype), mx::Device::cpu), {5, 7}, mx::Device::cpu);
  auto got = MetalKernel(source, false)({a, b, c}, call, mx::Device::cpu);
  auto want = Elementwise(spec)({a, b, c}, {}, mx::Device::cpu);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].dtype(), want[i].dtype());
    double rtol = got[i].dtype() == mx::bfloat16 ? 8e-3
        : got[i].dtype() == mx::float16          ? 1e-3
                                                 : 2e-6;
    auto close = mx::allclose(
        mx::astype(got[i], mx::float32, mx::Device::cpu),
        mx::astype(want[i], mx::float32, mx::Device::cpu),
        rtol,
        1e-7,
        true,
        mx::Device::cpu);
    EXPECT_TRUE(close.item<bool>()) << "output " << i << "\n" << got[i] << "\n" << want[i];
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes,
    PrintedForMetal,
    ::testing::Values(Dtype::f32, Dtype::f16, Dtype::bf16, Dtype::i32, Dtype::u8, Dtype::boolean),
    [](auto& info) { return std::string(name_of(info.param)); });

} // namespace
} // namespace zmlx
