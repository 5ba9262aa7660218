// tests/cpp/lang_test.cpp: the kernel language: parser, derivatives, dtypes and generated text.
#include <cmath>

#include "op_testing.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
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
      if (row.typing == Typing::choice && i == 0) {
        continue; // a condition is no number
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
  auto swiglu = kernel("swiglu", {out[i] = Expr(gate[i]) / (1 + exp(-Expr(gate[i]))) * up[i]});
  auto a = mx::random::normal({3, 33});
  auto b = mx::random::normal({33});
  testing::expect_close(swiglu({a, b})[0], a * mx::sigmoid(a) * b, 2e-5);
}

TEST(Lang, equal_parts_are_computed_once) {
  Expr x = input("x");
  auto program = lower({exp(x) * exp(x)}, {"x"}, {{Dtype::f32, false}});
  EXPECT_EQ(program.steps.size(), 3u);
}

TEST(Lang, an_unknown_language_is_refused) {
  auto k = kernel("k", {{"out", input("x") + 1}});
  EXPECT_EQ(
      message_of([&] { k.source("basic", {Dtype::f32}); }),
      "[kernel] language must be cpp but got basic.");
}

} // namespace
} // namespace zmlx::lang
