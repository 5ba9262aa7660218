// tests/cpp/capture_test.cpp: MLX's lazy graphs as our own, and back.
#include "zmlx/graph/capture.h"

#include "mlx/compile.h"
#include "mlx/fast.h"
#include "op_testing.h"
#include "zmlx/graph/compiled.h"

namespace zmlx {
namespace {

using namespace testing;

using Function = std::function<Arrays(const Arrays&)>;

const Node& root(const Graph& graph) {
  return graph[graph.outputs.at(0).node];
}

TEST(Capture, ReadsKindsAndParameters) {
  auto x = mx::random::normal({2, 3, 4});
  struct Row {
    const char* kind;
    Attrs attrs;
    mx::array array;
  };
  std::vector<Row> rows = {
      {"Sqrt", {}, mx::sqrt(x)},
      {"Rsqrt", {}, mx::rsqrt(x)},
      {"Softmax", {{"precise", int64_t{1}}}, mx::softmax(x, std::vector<int>{-1}, true)},
      {"ArgPartition", {{"kth", int64_t{2}}, {"axis", int64_t{2}}}, mx::argpartition(x, -2, -1)},
      {"Transpose", {{"axes", std::vector<int64_t>{1, 0, 2}}}, mx::transpose(x, {1, 0, 2})},
      {"Concatenate", {{"axis", int64_t{1}}}, mx::concatenate({x, x}, 1)},
      {"Arange", {{"start", 1.0}, {"stop", 9.0}, {"step", 2.0}}, mx::arange(1., 9., 2., mx::int32)},
      {"Slice",
       {{"start", std::vector<int64_t>{0, 0, 0}},
        {"end", std::vector<int64_t>{2, 3, 4}},
        {"strides", std::vector<int64_t>{1, 2, 1}}},
       mx::slice(x, {0, 0, 0}, {2, 3, 4}, {1, 2, 1})},
      {"RightShift", {}, mx::right_shift(mx::ones({2}, mx::uint32), mx::ones({2}, mx::uint32))},
      {"Log2", {}, mx::log2(x)},
  };
  for (auto& row : rows) {
    auto graph = capture({}, {row.array});
    EXPECT_EQ(root(graph).kind, row.kind);
    EXPECT_EQ(to_string(root(graph).attrs), to_string(row.attrs)) << row.kind;
    EXPECT_TRUE(root(graph).attrs == row.attrs) << row.kind;
  }
  EXPECT_EQ(root(capture({}, {mx::max(x, 1, true)})).kind, "Max");
  EXPECT_EQ(root(capture({}, {mx::cumsum(x, 1)})).kind, "CumSum");
}

TEST(Capture, TellsInputsFromConstants) {
  auto x = mx::random::normal({4});
  auto w = mx::array(0.5f);
  mx::eval(x);
  auto graph = capture({x}, {x * w + mx::array(2.0f, mx::bfloat16)});
  ASSERT_EQ(graph.inputs.size(), 1u);
  std::vector<double> scalars;
  for (int id = 0; id < graph.size(); ++id) {
    if (graph[id].constant && graph[id].constant->scalar) {
      scalars.push_back(*graph[id].constant->scalar);
    }
  }
  EXPECT_EQ(scalars, (std::vector<double>{0.5, 2.0}));
}

TEST(Capture, UnknownPrimitivesAreEqualOnlyToThemselves) {
  auto x = mx::random::normal({2, 2});
  auto a = capture({}, {mx::hadamard_transform(x)});
  auto b = capture({}, {mx::hadamard_transform(x)});
  EXPECT_TRUE(root(a).attrs.has("primitive"));
  EXPECT_FALSE(root(a).attrs == root(b).attrs);
}

TEST(Capture, EmitGivesTheSameValues) {
  auto x = mx::random::normal({4, 6});
  mx::eval(x);
  Function fn = [](const Arrays& v) {
    auto parts = mx::split(v[0], 2, 1);
    return Arrays{mx::exp(parts[1]) - parts[0], mx::transpose(v[0]), v[0]};
  };
  auto graph = capture({x}, fn({x}));
  auto y = mx::random::normal({4, 6});
  auto got = emit(graph, {y});
  auto want = fn({y});
  for (size_t i = 0; i < want.size(); ++i) {
    expect_close(got[i], want[i], 0);
  }
}

TEST(Capture, TraceSeesThroughCompiledFunctions) {
  auto inner =
      mx::compile(Function([](const Arrays& v) { return Arrays{v[0] * mx::sigmoid(v[0])}; }));
  auto graph = trace([&](const Arrays& v) { return inner({v[0]}); }, {mx::random::normal({8})});
  EXPECT_EQ(root(graph).kind, "Multiply");
  EXPECT_EQ(graph.size(), 3);
}

TEST(Capture, TraceEvaluatesNothing) {
  auto x = mx::random::normal({8});
  trace([](const Arrays& v) { return Arrays{mx::exp(v[0])}; }, {x});
  EXPECT_EQ(x.status(), mx::array::Status::unscheduled);
}

TEST(Capture, TraceLetsExceptionsThrough) {
  Function broken = [](const Arrays&) -> Arrays { throw std::runtime_error("broken"); };
  EXPECT_THROW(trace(broken, {mx::array(1.0f)}), std::runtime_error);
  auto graph = trace([](const Arrays& v) { return Arrays{-v[0]}; }, {mx::array(1.0f)});
  EXPECT_EQ(root(graph).kind, "Negative");
}

TEST(Capture, OurOpsKeepTheirNameAndAttributes) {
  auto x = mx::random::normal({2, 8});
  auto out = node(op_named("rms_norm"), {x, mx::ones({8})}, {{"eps", 1e-5}});
  auto graph = capture({x}, out);
  EXPECT_EQ(root(graph).kind, "rms_norm");
  EXPECT_EQ(root(graph).attrs.real("eps"), 1e-5);
}

std::string message_of(const std::function<void()>& fn) {
  try {
    fn();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "no exception";
}

TEST(Capture, SaysWhatEmitExpected) {
  auto x = mx::random::normal({2, 3});
  auto graph = capture({x}, {-x});
  EXPECT_EQ(message_of([&] { emit(graph, {}); }), "[emit] expected 1 inputs but got 0.");
  EXPECT_EQ(
      message_of([&] { emit(graph, {mx::zeros({3})}); }),
      "[emit] input 0 must be float32(2, 3) but got float32(3,).");
  EXPECT_EQ(
      message_of([] { elementwise("Fold", {}, mx::float32); }),
      "[emit] a node of kind Fold has no primitive to run.");
}

TEST(Capture, RefusesTypesThatKernelsDoNotKnow) {
  EXPECT_EQ(message_of([] { dtype_of(mx::float64); }), "[zmlx] float64 arrays are not supported.");
  EXPECT_EQ(
      message_of([] { dtype_of(mx::complex64); }), "[zmlx] complex64 arrays are not supported.");
}

TEST(Capture, TypesTranslateBothWays) {
  for (auto dtype :
       {mx::bool_,
        mx::uint8,
        mx::uint16,
        mx::uint32,
        mx::uint64,
        mx::int8,
        mx::int16,
        mx::int32,
        mx::int64,
        mx::float16,
        mx::bfloat16,
        mx::float32}) {
    EXPECT_EQ(mlx_dtype(dtype_of(dtype)), dtype);
  }
  EXPECT_EQ(mlx_shape(Shape{2, 3}), (mx::Shape{2, 3}));
}

TEST(Compiled, StepsComeFromTheLibraryName) {
  auto steps = steps_of("CV2ISigmoidADV2IMultiplyACEV2OMultiplyDB_VV_V2V2_123", 2);
  ASSERT_TRUE(steps);
  ASSERT_EQ(steps->size(), 3u);
  EXPECT_EQ((*steps)[0].kind, "Sigmoid");
  EXPECT_EQ((*steps)[0].dtype, Dtype::bf16);
  EXPECT_EQ((*steps)[1].inputs, (std::vector<int>{0, 2}));
  EXPECT_EQ((*steps)[2].inputs, (std::vector<int>{3, 1}));
}

TEST(Compiled, OtherNamesGiveNothing) {
  EXPECT_FALSE(steps_of("", 1));
  EXPECT_FALSE(steps_of("Bf4OFrobnicateA_V_f4_1", 1));
  EXPECT_FALSE(steps_of("Bf4ISigmoidA_V_f4_1", 1));
  EXPECT_FALSE(steps_of("Bf4OSigmoidZ_V_f4_1", 1));
  EXPECT_FALSE(steps_of("Bx9OSigmoidA_V_f4_1", 1));
}

} // namespace
} // namespace zmlx
