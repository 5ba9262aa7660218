// tests/cpp/lang_test.cpp: the kernel language: parser, derivatives, dtypes and generated text.
#include <cmath>

#include "op_testing.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/kernel/lang/print.h"
#include "zmlx/runtime/elementwise.h"

namespace zmlx::lang {
namespace {

using zmlx::testing::message_of;

double value_of(const std::string& text, double x = 0, double y = 0) {
  return evaluate(parse({text, {"x", "y"}}), {"x", "y"}, {x, y});
}

TEST(Lang, precedence_is_that_of_c_with_a_power_operator) {
  EXPECT_EQ(value_of("1 + 2 * 3 - 4 / 2"), 5);
  EXPECT_EQ(value_of("-x ** 2", 3), -9);
  EXPECT_EQ(value_of("2 ** 3 ** 2"), 512);
  EXPECT_EQ(value_of("x < 2 && y > 1 ? 10 : 1 << 3 | 1", 3, 2), 9);
  EXPECT_EQ(value_of("-7 % 3"), 2);
  EXPECT_EQ(value_of("0xFF & ~0x0F"), 0xF0);
  EXPECT_EQ(value_of("1.5e1f + 2.f"), 17);
}

TEST(Lang, statements_assign_again_and_update) {
  EXPECT_EQ(value_of("float t = x + 1; t = t * t; t += y; return t;", 2, 5), 14);
}

TEST(Lang, statements_give_each_output_its_value) {
  auto out = parse_outputs({"p[elem] = x[elem] + 1; q[elem] = p * y;", {"x", "y"}}, {"q", "p"});
  EXPECT_EQ(evaluate(out[0], {"x", "y"}, {2, 5}), 15);
  EXPECT_EQ(evaluate(out[1], {"x", "y"}, {2, 5}), 3);
}

TEST(Lang, an_output_without_a_value_is_named) {
  EXPECT_EQ(
      message_of([] {
        parse_outputs({"p = x;", {"x"}, "k"}, {"q"});
      }),
      "[k] nothing is assigned to the output 'q'.");
}

TEST(Lang, errors_point_at_the_place) {
  EXPECT_EQ(
      message_of([] {
        parse({"x + (y", {"x", "y"}, "k"});
      }),
      "[k] expected ')' but got the end:\n  x + (y\n        ^");
}

/// Arguments at which every function is smooth.
double argument(int i) {
  constexpr double values[] = {0.37, 0.82, 0.54};
  return values[i];
}

TEST(Lang, every_derivative_agrees_with_finite_differences) {
  for (auto& row : functions()) {
    std::vector<std::string> names;
    std::vector<Expr> args;
    std::vector<double> at;
    for (int i = 0; i < row.arity; ++i) {
      names.push_back("x" + std::to_string(i));
      args.push_back(input(names.back()));
      at.push_back(argument(i));
    }
    if (row.typing == Typing::bits) {
      continue; // on integers alone
    }
    Expr f = call(row.name, args);
    auto found = gradients({f}, {Expr(1.0)}, names);
    for (size_t i = 0; i < at.size(); ++i) {
      if ((row.typing == Typing::choice && i == 0) || !row.derivative[i]) {
        EXPECT_TRUE(is_constant(found[i], 0));
        continue; // a condition is no number, and some functions are flat
      }
      constexpr double h = 1e-5;
      auto up = at;
      auto down = at;
      up[i] += h;
      down[i] -= h;
      double want = (evaluate(f, names, up) - evaluate(f, names, down)) / (2 * h);
      double got = evaluate(found[i], names, at);
      EXPECT_NEAR(got, want, 1e-7 * std::max(1.0, std::abs(want))) << row.name << " argument " << i;
    }
  }
}

TEST(Lang, every_composite_parses_and_has_the_right_slope) {
  for (auto& row : composites()) {
    auto& body = parsed_composite(row);
    auto found = gradients({body.value}, {Expr(1.0)}, body.args);
    std::vector<double> at;
    for (size_t i = 0; i < body.args.size(); ++i) {
      at.push_back(argument(static_cast<int>(i)));
    }
    auto up = at;
    auto down = at;
    up[0] += 1e-5;
    down[0] -= 1e-5;
    double want =
        (evaluate(body.value, body.args, up) - evaluate(body.value, body.args, down)) / 2e-5;
    EXPECT_NEAR(evaluate(found[0], body.args, at), want, 1e-7) << row.name;
  }
}

TEST(Lang, dtypes_promote_as_in_mlx) {
  for (int a = 0; a <= static_cast<int>(Dtype::f32); ++a) {
    for (int b = 0; b <= static_cast<int>(Dtype::f32); ++b) {
      auto x = static_cast<Dtype>(a);
      auto y = static_cast<Dtype>(b);
      auto got = promote({x, false}, {y, false}).dtype;
      EXPECT_EQ(mlx_dtype(got), mx::promote_types(mlx_dtype(x), mlx_dtype(y)))
          << name_of(x) << " and " << name_of(y);
    }
  }
}

TEST(Lang, kernels_are_written_with_operators_too) {
  Array gate("gate");
  Array up("up");
  Array out("out");
  Index i;
  auto swiglu = kernel("swiglu", {out[i] = gate[i] * sigmoid(gate[i]) * up[i]});
  auto a = mx::random::normal({3, 33});
  auto b = mx::random::normal({33});
  testing::expect_close(swiglu({a, b})[0], a * mx::sigmoid(a) * b, 2e-5);
}

TEST(Lang, equal_parts_are_computed_once) {
  Expr x = input("x");
  auto program = lower({exp(x) * exp(x)}, {"x"}, {{Dtype::f32, false}});
  EXPECT_EQ(program.steps.size(), 3u);
}

/// What a kernel of silu(x) + y is in a language, without what comes before.
template <typename F>
std::string kernel_text(F text) {
  auto program = lower(
      {parse({"x / (1 + exp(-x)) + y", {"x", "y"}})}, {"x", "y"}, {{Dtype::bf16}, {Dtype::f32}});
  return text(ElementwiseText{program, {Dtype::bf16, Dtype::f32}, {Dtype::f32}}).kernel;
}

TEST(Lang, a_kernel_in_cpp) {
  EXPECT_EQ(kernel_text(cpp_text), R"(
extern "C" void zmlx_run(const void* const* in, void* const* out, int64_t n) {
  const bf16* in0 = static_cast<const bf16*>(in[0]);
  const float* in1 = static_cast<const float*>(in[1]);
  float* out0 = static_cast<float*>(out[0]);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float x0 = load(in0[i]);
    const float x1 = load(in1[i]);
    const float t0 = -x0;
    const float t1 = exponential(t0);
    const float t2 = 1.0f + t1;
    const float t3 = x0 / t2;
    const float t4 = t3 + x1;
    out0[i] = Storage<float>::round(t4);
  }
}
)");
}

TEST(Lang, a_kernel_in_cuda) {
  auto text = [](const ElementwiseText& kernel) {
    return cuda_text(kernel, {Access::contiguous, Access::strided}, 2);
  };
  EXPECT_EQ(kernel_text(text), R"(
template <typename Index>
__global__ void __launch_bounds__(256) zmlx_run(Pointer in0, Pointer in1, Pointer out0, Extent size, Extent e1, Extent s1_0, Extent s1_1) {
  constexpr int Size = 4;
  wait_for_predecessor();
  start_successor();
  const bf16* __restrict__ p0 = in0.as<const bf16>();
  const bool a0 = in_packs<Size>(p0);
  const float* __restrict__ p1 = in1.as<const float>();
  float* __restrict__ q0 = out0.as<float>();
  const bool b0 = in_packs<Size>(q0);
  const Index n = Index(size.get());
  const Index thread = Index(blockIdx.x) * Index(blockDim.x) + threadIdx.x;
  const Index step = Index(gridDim.x) * Index(blockDim.x) * Size;
  for (Index first = thread * Size; first < n; first += step) {
    const auto w0 = load_pack<Size>(p0, first, n, a0);
    Pack<float, Size> o0;
#pragma unroll
    for (int j = 0; j < Size; ++j) {
      const Index i = first + j;
      if (i < n) {
        const Index d1 = Index(e1.get());
        const int64_t c1 = int64_t(i % d1);
        const Index r1 = i / d1;
        const int64_t c0 = int64_t(r1);
        const float x0 = load(w0.v[j]);
        const float x1 = load(p1[c0 * s1_0.get() + c1 * s1_1.get()]);
        const float t0 = -x0;
        const float t1 = expf(t0);
        const float t2 = 1.0f + t1;
        const float t3 = x0 / t2;
        const float t4 = t3 + x1;
        o0.v[j] = Storage<float>::round(t4);
      }
    }
    store_pack(o0, q0, first, n, b0);
  }
}
)");
}

TEST(Lang, a_kernel_for_metal) {
  EXPECT_EQ(kernel_text(metal_text), R"(const uint i = thread_position_in_grid.x;
const float x0 = float(in0[elem_to_loc(i, in0_shape, in0_strides, in0_ndim)]);
const float x1 = float(in1[elem_to_loc(i, in1_shape, in1_strides, in1_ndim)]);
const float t0 = -x0;
const float t1 = metal::precise::exp(t0);
const float t2 = 1.0f + t1;
const float t3 = x0 / t2;
const float t4 = t3 + x1;
out0[i] = float(t4);
)");
}

TEST(Lang, metal_has_no_builtins_of_other_compilers) {
  for (auto& row : functions()) {
    std::vector<Expr> args;
    std::vector<std::string> names = {"a", "b", "c"};
    for (int i = 0; i < row.arity; ++i) {
      args.push_back(input(names[static_cast<size_t>(i)]));
    }
    auto dtype = row.typing == Typing::bits ? Dtype::i32 : Dtype::f32;
    auto program = lower({call(row.name, args)}, names, {{dtype}, {dtype}, {dtype}});
    auto text = metal_text({program, {dtype, dtype, dtype}, {dtype}});
    for (auto& part : {text.prelude, text.kernel}) {
      EXPECT_EQ(part.find("__builtin"), std::string::npos) << row.name;
      EXPECT_EQ(part.find("double"), std::string::npos) << row.name;
    }
  }
}

TEST(Lang, an_unknown_language_is_refused) {
  auto k = kernel("k", {{"out", input("x") + 1}});
  EXPECT_EQ(
      message_of([&] { k.source("basic", {Dtype::f32}); }),
      "[kernel] language must be one of cpp, cuda, metal but got basic.");
}

} // namespace
} // namespace zmlx::lang
