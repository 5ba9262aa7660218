// tests/cpp/patterns_test.cpp: every pattern on its own examples, and the driver on whole graphs.
#include "mlx/compile.h"
#include "mlx/fast.h"
#include "op_testing.h"
#include "zmlx/graph/canonicalise.h"
#include "zmlx/graph/rewrite.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

using namespace testing;

Graph traced(const Build& build, const Example& example) {
  return trace([&](const Arrays& v) { return build(v, example.attrs); }, example.variables);
}

int count(const Graph& graph, std::string_view kind) {
  int n = 0;
  for (int id = 0; id < graph.size(); ++id) {
    n += graph[id].kind == kind;
  }
  return n;
}

RewriteOptions only(const std::string& name) {
  RewriteOptions options;
  options.include = {name};
  return options;
}

// Chosen indices may come in any order, and what belongs to them with them.
void expect_equal_up_to_order(Arrays got, Arrays want, mx::Dtype dtype) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    bool sorted = want[i].dtype() == mx::uint32 || (i > 0 && want[i - 1].dtype() == mx::uint32);
    expect_close(
        sorted ? mx::sort(got[i], -1) : got[i],
        sorted ? mx::sort(want[i], -1) : want[i],
        4 * tolerance_of(dtype));
  }
}

TEST(Patterns, NormsThatDifferInTheirEpsilonAreNotMixedUp) {
  auto graph = trace(
      [](const Arrays& v) {
        return Arrays{mx::fast::rms_norm(v[0], v[1], 1e-5f), mx::fast::rms_norm(v[2], v[1], 1e-2f)};
      },
      {example_array({2, 8}), example_array({8}), example_array({2, 8})});
  rewrite(graph);
  ASSERT_EQ(count(graph, "rms_norm"), 2);
  EXPECT_FLOAT_EQ(static_cast<float>(graph[graph.outputs[0].node].attrs.real("eps")), 1e-5f);
  EXPECT_FLOAT_EQ(static_cast<float>(graph[graph.outputs[1].node].attrs.real("eps")), 1e-2f);
}

TEST(Patterns, FireOnTheirExamples) {
  EXPECT_GE(all_patterns().size(), 15u);
  for (auto* pattern : all_patterns()) {
    auto examples = pattern->examples();
    EXPECT_FALSE(examples.empty());
    for (auto& example : examples) {
      SCOPED_TRACE(pattern->name + ", " + example.name);
      mx::eval(example.variables);
      // Weights as constants, like in a model; the first variable stays an input.
      auto graph = trace(
          [&](const Arrays& first) {
            auto all = example.variables;
            all[0] = first[0];
            return pattern->find(all, example.attrs);
          },
          {example.variables[0]});
      auto report = rewrite(graph, only(pattern->name));
      EXPECT_EQ(report.fired[pattern->name], 1) << to_string(graph);
    }
  }
}

TEST(Patterns, KeepTheValue) {
  for (auto* pattern : all_patterns()) {
    for (auto& example : pattern->examples()) {
      SCOPED_TRACE(pattern->name + ", " + example.name);
      mx::eval(example.variables);
      auto before = traced(pattern->find, example);
      auto after = before;
      rewrite(after, only(pattern->name));
      auto dtype = floating(example.variables[0]) ? example.variables[0].dtype() : mx::float32;
      expect_equal_up_to_order(
          emit(after, example.variables), emit(before, example.variables), dtype);
    }
  }
}

TEST(Patterns, KeepGraphsThatOnlyLookAlike) {
  for (auto* pattern : all_patterns()) {
    EXPECT_FALSE(pattern->keeps.empty()) << pattern->name;
    for (auto& keep : pattern->keeps) {
      SCOPED_TRACE(pattern->name + ", " + keep.name);
      auto graph = traced(keep.build, keep.on());
      auto report = rewrite(graph, only(pattern->name));
      EXPECT_EQ(report.fired.count(pattern->name), 0u) << to_string(graph);
    }
  }
}

TEST(Rewrite, NamesAnUnknownPattern) {
  Graph graph;
  try {
    rewrite(graph, only("swigloo"));
    FAIL() << "accepted";
  } catch (const std::invalid_argument& e) {
    EXPECT_STREQ(e.what(), "[rewrite] there is no pattern named 'swigloo'.");
  }
}

TEST(Rewrite, LeavesOutExcludedPatterns) {
  auto* swiglu = *std::find_if(
      all_patterns().begin(), all_patterns().end(), [](auto* p) { return p->name == "swiglu"; });
  auto graph = traced(swiglu->find, swiglu->examples()[0]);
  RewriteOptions options;
  options.exclude = {"swiglu"};
  auto report = rewrite(graph, options);
  EXPECT_EQ(count(graph, "swiglu"), 0);
  EXPECT_EQ(report.left.at("Sigmoid"), 1);
}

TEST(Rewrite, AsksOpsToBeExact) {
  auto* swiglu = *std::find_if(
      all_patterns().begin(), all_patterns().end(), [](auto* p) { return p->name == "swiglu"; });
  auto graph = traced(swiglu->find, swiglu->examples()[0]);
  RewriteOptions options;
  options.exact = true;
  rewrite(graph, options);
  ASSERT_EQ(count(graph, "swiglu"), 1);
  EXPECT_EQ(graph[graph.outputs[0].node].attrs.integer("exact"), 1);
}

TEST(Rewrite, MergesLinearLayersOfOneInput) {
  auto format = example_formats()[0];
  auto a = example_weight(16, 32, format), b = example_weight(8, 32, format);
  auto other = with(format, {{"bits", int64_t{8}}});
  auto c = example_weight(8, 32, other);
  mx::eval(join({a, b, c}));
  auto x = example_array({3, 32});
  auto fn = [&](const Arrays& v) {
    auto product = [&](const Arrays& w, int bits) {
      return mx::quantized_matmul(v[0], w[0], w[1], w[2], true, 32, bits);
    };
    return Arrays{product(a, 4), product(b, 4), product(c, 8)};
  };
  auto graph = trace(fn, {x});
  auto report = rewrite(graph);
  EXPECT_EQ(report.fired["merge_linears"], 1);
  EXPECT_EQ(count(graph, "linear"), 2);
  expect_equal_up_to_order(emit(graph, {x}), fn({x}), mx::float32);
}

TEST(Rewrite, FoldsWhatDependsOnNoInput) {
  auto x = example_array({4});
  auto graph = trace(
      [](const Arrays& v) {
        return Arrays{v[0] * mx::exp(mx::arange(4, mx::float32) * mx::array(0.5f))};
      },
      {x});
  rewrite(graph);
  EXPECT_EQ(count(graph, "Exp"), 0);
  EXPECT_EQ(count(graph, "Multiply"), 1);
}

/// gate, up -> two heads on a SwiGLU in MLX's own compiled form.
mx::array compiled_swiglu(const mx::array& gate, const mx::array& up) {
  static auto fn =
      mx::compile([](const Arrays& v) { return Arrays{v[0] * mx::sigmoid(v[0]) * v[1]}; }, true);
  return fn({gate, up})[0];
}

TEST(RewriteLazy, ReplacesNodesUnderExistingReferences) {
  auto gate = example_array({3, 8}), up = example_array({3, 8});
  mx::eval(gate, up);
  auto want = gate * mx::sigmoid(gate) * up;
  auto inner = gate * mx::sigmoid(gate) * up;
  auto outer = mx::sum(inner, -1);
  RewriteReport report;
  rewrite({outer}, {}, &report);
  EXPECT_EQ(report.fired["swiglu"], 1);
  EXPECT_STREQ(inner.primitive().name(), "swiglu");
  expect_close(outer, mx::sum(want, -1), 1e-5);
  expect_close(inner, want, 1e-5);
}

TEST(RewriteLazy, LeavesInnerArraysValid) {
  auto gate = example_array({3, 8}), up = example_array({3, 8});
  mx::eval(gate, up);
  auto sigmoid = mx::sigmoid(gate);
  auto out = gate * sigmoid * up;
  rewrite({out});
  expect_close(out, gate * mx::sigmoid(gate) * up, 1e-5);
  expect_close(sigmoid, mx::sigmoid(gate), 1e-6);
}

TEST(RewriteLazy, SeesThroughCompiledFunctions) {
  for (auto dtype : {mx::float32, mx::bfloat16, mx::float16}) {
    auto gate = example_array({3, 8}, dtype), up = example_array({3, 8}, dtype);
    mx::eval(gate, up);
    auto out = compiled_swiglu(gate, up);
    RewriteReport report;
    rewrite({out}, {}, &report);
    EXPECT_EQ(report.fired["swiglu"], 1);
    EXPECT_STREQ(out.primitive().name(), "swiglu");
    expect_close(out, gate * mx::sigmoid(gate) * up, tolerance_of(dtype));
  }
}

TEST(RewriteLazy, KeepsACompiledFunctionThatNoPatternKnows) {
  auto fn = mx::compile([](const Arrays& v) { return Arrays{mx::exp(v[0]) * v[1] + v[0]}; }, true);
  auto a = example_array({4}), b = example_array({4});
  mx::eval(a, b);
  auto out = fn({a, b})[0];
  std::string name = out.primitive().name();
  rewrite({out});
  EXPECT_EQ(out.primitive().name(), name);
  expect_close(out, mx::exp(a) * b + a, 1e-5);
}

TEST(RewriteLazy, ReplacesSeveralOutputsOfOneNode) {
  auto format = example_formats()[0];
  auto x = example_array({1, 3, 32});
  auto w = example_weight(8, 32, format);
  mx::eval(join({{x}, w}));
  auto build = [&] {
    auto p = mx::softmax(
        mx::quantized_matmul(x, w[0], w[1], w[2], true, 32, 4), std::vector<int>{-1}, true);
    auto indices = mx::slice(mx::argpartition(p, -2, -1), {0, 0, 6}, {1, 3, 8});
    return Arrays{indices, mx::take_along_axis(p, indices, -1)};
  };
  auto got = build();
  RewriteReport report;
  rewrite({mx::sum(got[1])}, {}, &report);
  EXPECT_EQ(report.fired["moe_router"], 1);
  EXPECT_EQ(got[0].siblings().size(), 1u);
  expect_equal_up_to_order(got, build(), mx::float32);
}

TEST(RewriteLazy, EvaluatedArraysAreLeftAlone) {
  auto x = example_array({3});
  mx::eval(x);
  auto out = rewrite({x});
  EXPECT_EQ(out[0].id(), x.id());
}

} // namespace
} // namespace zmlx
