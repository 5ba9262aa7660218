// tests/cpp/graph_test.cpp: building, ordering, printing and canonicalising graphs, and matching.
#include <gtest/gtest.h>

#include "mlx/mlx.h"
#include "zmlx/graph/canonicalise.h"
#include "zmlx/graph/capture.h"
#include "zmlx/graph/match.h"

namespace zmlx {
namespace {

const Type vector4{Dtype::f32, {4}};

Value add_node(Graph& graph, const char* kind, std::vector<Value> inputs) {
  Node node;
  node.kind = kind;
  node.inputs = std::move(inputs);
  node.outputs = {vector4};
  return {graph.add(std::move(node)), 0};
}

int count(const Graph& graph, std::string_view kind) {
  int n = 0;
  for (int id = 0; id < graph.size(); ++id) {
    n += graph[id].kind == kind;
  }
  return n;
}

Graph canonical(const std::function<Arrays(const Arrays&)>& fn, const Arrays& examples) {
  auto graph = trace(fn, examples);
  canonicalise(graph);
  return graph;
}

TEST(Graph, PrintsOneLineANode) {
  Graph graph;
  auto x = graph.input(vector4);
  graph.outputs = {add_node(graph, "Exp", {x})};
  EXPECT_EQ(to_string(graph), "%0 = input : float32(4,)\n%1 = Exp(%0) : float32(4,)\nreturn %1\n");
}

TEST(Graph, PruneDropsWhatNobodyNeeds) {
  Graph graph;
  auto unused = graph.input(vector4);
  auto x = graph.input(vector4);
  auto dead = add_node(graph, "Exp", {x});
  auto live = add_node(graph, "Sin", {x});
  graph.outputs = {live};
  graph.tracked = {dead, live};
  auto renamed = graph.prune();
  EXPECT_EQ(graph.size(), 3);
  EXPECT_EQ(renamed[static_cast<size_t>(dead.node)], -1);
  EXPECT_EQ(renamed[static_cast<size_t>(unused.node)], 0);
  EXPECT_FALSE(graph.tracked[0]);
  EXPECT_EQ(graph[graph.tracked[1].node].kind, "Sin");
}

TEST(Graph, PruneOrdersNodesThatWereAddedLate) {
  Graph graph;
  auto x = graph.input(vector4);
  auto a = add_node(graph, "Exp", {x});
  auto b = add_node(graph, "Sin", {a});
  graph.outputs = {b};
  graph.replace(a, add_node(graph, "Cos", {x}));
  graph.prune();
  EXPECT_EQ(count(graph, "Exp"), 0);
  EXPECT_EQ(graph[1].kind, "Cos");
  EXPECT_EQ(graph[2].kind, "Sin");
}

TEST(Graph, ReplacementsMayChain) {
  Graph graph;
  auto x = graph.input(vector4);
  auto a = add_node(graph, "Exp", {x});
  auto b = add_node(graph, "Sin", {x});
  graph.outputs = {a};
  graph.replace({{a, b}, {b, x}});
  EXPECT_EQ(graph.outputs[0], x);
}

TEST(Graph, NamesANodeThatDependsOnItself) {
  Graph graph;
  auto x = graph.input(vector4);
  auto a = add_node(graph, "Exp", {x});
  auto b = add_node(graph, "Sin", {a});
  graph[a.node].inputs = {b};
  graph.outputs = {b};
  try {
    graph.prune();
    FAIL() << "accepted";
  } catch (const std::logic_error& e) {
    EXPECT_STREQ(e.what(), "[graph] node %2 depends on itself.");
  }
}

TEST(Canonicalise, DropsWhatChangesNothing) {
  auto graph = canonical(
      [](const Arrays& v) {
        auto x = mx::stop_gradient(mx::copy(v[0]));
        x = mx::reshape(mx::reshape(x, {4, 1, 2}), {8});
        return Arrays{mx::exp(mx::transpose(mx::transpose(mx::reshape(x, {2, 4}))))};
      },
      {mx::zeros({8})});
  EXPECT_EQ(graph.size(), 3) << to_string(graph); // input, one Reshape, Exp
}

TEST(Canonicalise, SpellsViewsAsReshape) {
  auto graph = canonical(
      [](const Arrays& v) {
        auto x = mx::expand_dims(v[0], 1);
        auto y = mx::flatten(mx::exp(x));
        return Arrays{
            y, mx::transpose(mx::exp(x), {1, 0, 2}), mx::unflatten(mx::sin(y), 0, {2, 4})};
      },
      {mx::zeros({2, 4})});
  EXPECT_EQ(count(graph, "ExpandDims") + count(graph, "Flatten") + count(graph, "Unflatten"), 0);
  EXPECT_EQ(count(graph, "Transpose"), 0) << to_string(graph);
}

TEST(Canonicalise, KeepsATransposeThatMovesData) {
  auto graph =
      canonical([](const Arrays& v) { return Arrays{mx::transpose(v[0])}; }, {mx::zeros({2, 4})});
  EXPECT_EQ(count(graph, "Transpose"), 1);
}

TEST(Canonicalise, ImpliesBroadcastsOfElementwiseNodes) {
  auto x = mx::random::normal({3, 4}), y = mx::random::normal({4});
  mx::eval(x, y);
  auto graph = canonical([](const Arrays& v) { return Arrays{v[0] * v[1]}; }, {x, y});
  EXPECT_EQ(graph.size(), 3) << to_string(graph);
  EXPECT_TRUE(mx::array_equal(emit(graph, {x, y})[0], x * y).item<bool>());
}

TEST(Canonicalise, MergesEqualNodesAndScalars) {
  auto graph = canonical(
      [](const Arrays& v) {
        auto a = mx::exp(v[0] * mx::array(2.0f)), b = mx::exp(v[0] * mx::array(2.0f));
        return Arrays{a + b, v[0] * mx::array(3.0f)};
      },
      {mx::zeros({4})});
  EXPECT_EQ(count(graph, "Exp"), 1);
  EXPECT_EQ(count(graph, "constant"), 2);
}

TEST(Canonicalise, KeepsConstantsApartThatOnlyCompareEqual) {
  auto graph = canonical(
      [](const Arrays& v) {
        return Arrays{v[0] * mx::array(0.0f), v[0] * mx::array(-0.0f)};
      },
      {mx::zeros({4})});
  EXPECT_EQ(count(graph, "constant"), 2);
  auto large = canonical(
      [](const Arrays& v) {
        return Arrays{
            v[0] + mx::array(int64_t{1} << 60, mx::int64),
            v[0] + mx::array((int64_t{1} << 60) + 1, mx::int64)};
      },
      {mx::zeros({4}, mx::int64)});
  EXPECT_EQ(count(large, "constant"), 2);
}

TEST(Canonicalise, DoesNotMergeNodesOfOtherParameters) {
  auto graph = canonical(
      [](const Arrays& v) {
        return Arrays{
            mx::softmax(v[0], std::vector<int>{-1}, true),
            mx::softmax(v[0], std::vector<int>{-1}, false)};
      },
      {mx::zeros({4})});
  EXPECT_EQ(count(graph, "Softmax"), 2);
}

TEST(Match, FindsCommutedOperands) {
  auto sought = Sought(canonical(
      [](const Arrays& v) { return Arrays{v[0] * mx::sigmoid(v[0]) * v[1]}; },
      {mx::zeros({4}), mx::zeros({4})}));
  auto graph = canonical(
      [](const Arrays& v) { return Arrays{mx::exp(v[1]) * (mx::sigmoid(v[0]) * v[0])}; },
      {mx::zeros({4}), mx::zeros({4})});
  Haystack haystack(graph);
  int accepted = 0;
  for (int id : haystack.of_kind("Multiply")) {
    find_match(sought, haystack, id, [&](const Match& match) {
      ++accepted;
      EXPECT_TRUE(match.has("Sigmoid"));
      EXPECT_EQ(match.type(1), vector4);
      EXPECT_THROW(match.node("Exp"), std::out_of_range);
      EXPECT_THROW(match.scalar(0), std::out_of_range);
      return true;
    });
  }
  EXPECT_EQ(accepted, 1);
}

TEST(Match, BindsAVariableOnce) {
  auto sought = Sought(canonical(
      [](const Arrays& v) { return Arrays{v[0] * mx::sigmoid(v[0])}; }, {mx::zeros({4})}));
  auto graph = canonical(
      [](const Arrays& v) { return Arrays{v[0] * mx::sigmoid(v[1])}; },
      {mx::zeros({4}), mx::zeros({4})});
  Haystack haystack(graph);
  for (int id : haystack.of_kind("Multiply")) {
    EXPECT_FALSE(find_match(sought, haystack, id, [](const Match&) { return true; }));
  }
}

} // namespace
} // namespace zmlx
