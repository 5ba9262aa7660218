// tests/cpp/plan_cuda_test.cpp: plans for a GPU that need not be there, of ops made for the test.
#include <gtest/gtest.h>

#include "zmlx/ops/op.h"
#include "zmlx/plan/plan.h"

namespace zmlx {
namespace {

Types same(const Types& in, const Attrs&) {
  return {in[0]};
}

/// A kernel in two launches for bfloat16 alone.
cuda::Kernel two_launches(const Types& in, const Types&, const Attrs&, const cuda::Device& device) {
  if (in[0].dtype != Dtype::bf16) {
    return {};
  }
  auto blocks = static_cast<uint32_t>(device.multiprocessors);
  cuda::Launch first{"a.cuh", "first<bf16>", {blocks, 1, 1}, {256, 1, 1}, 1024, {}};
  cuda::Launch second{"a.cuh", "second<bf16>", {1, 1, 1}, {32, 1, 1}, 0, {}};
  return {{first, second}, 4096};
}

ZMLX_OP(with_cuda).args({"x"}).types(same).cuda(two_launches);
ZMLX_OP(without_cuda).args({"x"}).types(same);

constexpr cuda::Device device{90, 132, 227 * 1024};

Graph graph(const std::string& kind, Dtype dtype) {
  Graph graph;
  Type type{dtype, {4, 64}};
  auto x = graph.input(type);
  graph[x.node].attrs.set("rows", int64_t{4});
  graph[x.node].attrs.set("host", int64_t{1});
  int first = graph.add({kind, {}, {x}, {type}, nullptr, nullptr});
  int second = graph.add({kind, {}, {{first, 0}}, {type}, nullptr, nullptr});
  graph.outputs = {{second, 0}};
  return graph;
}

TEST(PlanForCuda, lists_each_ops_launches_with_source_grid_and_block) {
  auto [plan, reasons] = make_plan(graph("with_cuda", Dtype::bf16), device);
  ASSERT_TRUE(plan) << reasons[0];
  EXPECT_EQ(launch_count(*plan), 4u);
  EXPECT_EQ(plan->scratch_bytes, 4096u);
  EXPECT_EQ(plan->rows, 4);
  EXPECT_TRUE(plan->on_host[0]);
  auto text = to_string(*plan);
  EXPECT_NE(text.find("4 launches, arena 512 bytes"), std::string::npos) << text;
  EXPECT_NE(
      text.find("a.cuh: first<bf16>  grid (132, 1, 1) block (256, 1, 1) shared 1024\n"),
      std::string::npos)
      << text;
}

TEST(PlanForCuda, says_what_has_no_kernel) {
  auto none = make_plan(graph("without_cuda", Dtype::bf16), device);
  EXPECT_FALSE(none.plan);
  EXPECT_EQ(
      none.reasons, std::vector<std::string>{"without_cuda has no CUDA kernel (bfloat16(4, 64))"});
  auto other = make_plan(graph("with_cuda", Dtype::f32), device);
  EXPECT_FALSE(other.plan);
  EXPECT_EQ(
      other.reasons,
      std::vector<std::string>{"with_cuda has no CUDA kernel for float32(4, 64) {}"});
}

} // namespace
} // namespace zmlx
