// tests/cpp/lang_rows_test.cpp: reductions of rows in the kernel language: passes, derivatives,
// texts, and row kernels from C++.
#include <cmath>

#include "op_testing.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/fold.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/kernel/lang/print_rows.h"
#include "zmlx/runtime/elementwise.h"

namespace zmlx::lang {
namespace {

using zmlx::testing::message_of;

const std::vector<std::vector<double>> values = {{0.3, -1.2, 2.1, 0.7, 1.1}, {0.8}};

/// d(sum of elements of f)/d(x[k]) and d/d(r), by central differences.
std::vector<double> slopes(const Expr& f) {
  std::vector<double> out;
  auto total = [&](const std::vector<std::vector<double>>& at) {
    double sum = 0;
    for (double y : evaluate_row(f, {"x", "r"}, at, 5)) {
      sum += y;
    }
    return sum;
  };
  for (size_t i = 0; i < 2; ++i) {
    for (size_t k = 0; k < values[i].size(); ++k) {
      constexpr double h = 1e-5;
      auto up = values;
      auto down = values;
      up[i][k] += h;
      down[i][k] -= h;
      out.push_back((total(up) - total(down)) / (2 * h));
    }
  }
  return out;
}

class LangRows : public ::testing::TestWithParam<const char*> {};

TEST_P(LangRows, derivatives_through_rows_agree_with_finite_differences) {
  auto f = parse({GetParam(), {"x", "r"}});
  auto found = gradients({f}, {Expr(1.0)}, {"x", "r"}, {"r"});
  std::vector<double> got;
  for (size_t i = 0; i < 2; ++i) {
    auto row = evaluate_row(found[i], {"x", "r"}, values, 5);
    row.resize(values[i].size(), row[0]); // one value where all are the same
    got.insert(got.end(), row.begin(), row.end());
  }
  auto want = slopes(f);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i], want[i], 1e-7 * std::max(1.0, std::abs(want[i]))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Expressions,
    LangRows,
    ::testing::Values(
        "row_sum(x * x) * r",
        "x * row_mean(x * r) + r",
        "row_prod(x + 2) - row_prod(r + 0.1)",
        "x * row_max(x) + row_min(exp(x))",
        "row_sum(x * row_max(sin(x))) / row_size",
        "row_softmax(x) * x",
        "row_logsumexp(x * r)",
        "row_var(x) + row_sum(r) + r * r",
        "r * row_mean(r) + x",
        "row_sum(row_sum(x) * x + r)"),
    [](auto& info) { return "expression_" + std::to_string(info.index); });

TEST(LangRows, reductions_of_one_depth_share_a_pass) {
  auto softmax = parse({"row_softmax(x) * row_sum(x)", {"x"}});
  auto program = lower({softmax}, {"x"}, {{Dtype::f32}});
  auto made = schedule(program, Keep::expensive);
  ASSERT_EQ(made.passes.size(), 3u);
  EXPECT_EQ(made.passes[0].reduces.size(), 2u); // the maximum and the sum
  EXPECT_EQ(made.passes[1].reduces.size(), 1u);
  EXPECT_EQ(made.kept.size(), 1u); // the exponential
  EXPECT_TRUE(made.passes[2].writes);
  EXPECT_EQ(made.passes[2].restored, made.kept);
  EXPECT_TRUE(schedule(program, Keep::nothing).kept.empty());
  EXPECT_EQ(schedule(program, Keep::expensive_and_inputs).kept.size(), 2u);
}

TEST(LangRows, a_result_of_the_row_alone_takes_no_pass_of_its_own) {
  auto program =
      lower({parse({"sqrt(row_sum(x * x)) + r", {"x", "r"}})}, {"x", "r"}, {{}, {}}, {false, true});
  auto made = schedule(program, Keep::expensive);
  ASSERT_EQ(made.passes.size(), 1u);
  EXPECT_FALSE(made.passes[0].writes);
  EXPECT_TRUE(program.steps[static_cast<size_t>(program.results[0])].row);
}

TEST(LangRows, a_kernel_in_cpp) {
  auto program = lower({parse({"x / row_sum(x)", {"x"}})}, {"x"}, {{Dtype::bf16}});
  EXPECT_EQ(cpp_rows_text({program, {Dtype::bf16}, {Dtype::bf16}}).kernel, R"(
struct row_sum {
  template <typename T>
  ZMLX_INLINE T of(T a, T b) {
    return a + b;
  }
};

extern "C" void zmlx_rows(
    const void* const* in, const int64_t* in_steps, void* const* out,
    const int64_t* out_steps, int64_t rows, int64_t n, char* kept) {
  const int32_t row_size = int32_t(n);
  for (int64_t row = 0; row < rows; ++row) {
    const bf16* in0 = at<const bf16>(in[0], row * in_steps[0]);
    bf16* out0 = at<bf16>(out[0], row * out_steps[0]);
    double s_t0 = double(0.0f);
    for (int64_t c = 0; c < n; c += chunk) {
      float p_t0[lanes];
      fill<float>(p_t0, float(0.0f));
      each_block(c, c + chunk < n ? c + chunk : n,
                 [&](int64_t begin, int64_t count) __attribute__((always_inline)) {
#pragma omp simd
      for (int64_t l = 0; l < count; ++l) {
        const int64_t i = begin + l;
        const float x0 = load(in0[i]);
        p_t0[l] = row_sum::of<float>(p_t0[l], float(x0));
      }
      });
      s_t0 = row_sum::of<double>(s_t0, double(folded<row_sum>(p_t0)));
    }
    const float t0 = float(s_t0);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
        const float x0 = load(in0[i]);
        const float t1 = x0 / t0;
        out0[i] = Storage<bf16>::round(t1);
    }
  }
}
)");
}

TEST(LangRows, kernels_are_written_with_operators_too) {
  Array x("x");
  Array out("out");
  Index i;
  auto e = exp(x[i] - row_max(x[i]));
  auto softmax = kernel("softmax", {out[i] = e / row_sum(e)});
  auto a = mx::random::normal({3, 33});
  testing::expect_close(softmax({a})[0], mx::softmax(a, -1), 2e-5);
}

TEST(LangRows, updates_are_recognised_as_reductions) {
  auto fold = [](const char* init, const char* update) {
    auto made = folded(parse({init, {}}), parse({update, {"acc", "v"}}), "acc");
    return made ? made->reduction : "none";
  };
  EXPECT_EQ(fold("0", "acc + v"), "row_sum");
  EXPECT_EQ(fold("0", "v - 1 + acc"), "row_sum");
  EXPECT_EQ(fold("1", "acc * v"), "row_prod");
  EXPECT_EQ(fold("0", "v < acc ? acc : v"), "row_max");
  EXPECT_EQ(fold("0", "v < acc ? v : acc"), "row_min");
  EXPECT_EQ(fold("0", "v - acc"), "none");
  EXPECT_EQ(fold("0", "acc * 0.5 + v"), "none");
  EXPECT_EQ(fold("0", "acc + acc * v"), "none");
  EXPECT_EQ(fold("0", "v"), "none");
  EXPECT_EQ(combination(parse({"b + a", {"a", "b"}}), "a", "b"), "row_sum");
  EXPECT_EQ(combination(parse({"a - b", {"a", "b"}}), "a", "b"), "");
}

TEST(LangRows, a_misspelled_reduction_is_named) {
  EXPECT_EQ(
      message_of([] {
        parse({"row_sun(x)", {"x"}, "k"});
      }),
      "[k] unknown name 'row_sun'; did you mean 'row_sum'?\n  row_sun(x)\n  ^");
}

} // namespace
} // namespace zmlx::lang
