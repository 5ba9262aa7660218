// tests/cpp/bind_test.cpp: a CUDA launch's parameters, byte by byte, without a GPU.
#include "zmlx/plan/bind.h"

#include <gtest/gtest.h>

#include <bit>

namespace zmlx {
namespace {

constexpr cuda::Address workspace = 0x10000, slots = 0x20000;

/// One launch on a scalar from the host, a state, a constant and an arena value.
Plan plan() {
  Plan plan;
  Type scalar{Dtype::i32, {}}, state{Dtype::bf16, {1, 2, 256, 64}}, row{Dtype::bf16, {1, 1, 64}};
  plan.inputs = {scalar, state};
  plan.varies = {false, true};
  plan.on_host = {true, false};
  plan.outputs = {state};
  plan.states = {{0, 1}};
  plan.constants.resize(1);
  plan.arena_bytes = 320;
  plan.scratch_bytes = 64;
  Launch launch;
  launch.in = {{Place::Kind::input, 0}, {Place::Kind::output, 0}, {Place::Kind::constant, 0}};
  launch.in_types = {scalar, state, row};
  launch.out = {{Place::Kind::arena, 128}};
  launch.out_types = {row};
  cuda::Launch kernel;
  kernel.arguments = {
      cuda::in(0),
      cuda::in(1, 32),
      cuda::in(2, 16),
      cuda::out(0),
      cuda::scratch(8),
      cuda::in_dim(1, 2),
      cuda::in_dim(2, 2),
      cuda::i32(-1),
      cuda::f32(0.5)};
  launch.cuda.launches = {kernel};
  plan.launches = {launch};
  return plan;
}

TEST(Bind, fixed_addresses_are_parameters_and_the_rest_is_read_through_slots) {
  cuda::Address constants[] = {0x30000};
  auto made = plan();
  auto binding = cuda::bind_plan(made, constants, {workspace, slots, 0});
  ASSERT_EQ(binding.launches.size(), 1u);
  auto& bound = binding.launches[0];
  std::vector<uint64_t> words{
      slots,
      0, // the scalar's value lies in its slot
      0,
      slots + 8, // the state, 32 bytes in
      0x30010,
      0, // the constant
      workspace + 128,
      0, // the arena
      workspace + 512 + 8,
      0, // scratch begins at a multiple of 256
      0,
      slots + 16, // the state's rows vary
      64,
      0, // the constant's do not
      0xFFFFFFFF,
      std::bit_cast<uint32_t>(0.5f)};
  EXPECT_EQ(bound.words, words);
  EXPECT_EQ(bound.starts, (std::vector<size_t>{0, 2, 4, 6, 8, 10, 12, 14, 15}));
  EXPECT_EQ(cuda::workspace_bytes(made), 512u + 64u);
  EXPECT_EQ(cuda::slot_bytes(made), 24u);
}

TEST(Bind, slots_hold_what_a_run_brings) {
  cuda::Address constants[] = {0x30000};
  auto binding = cuda::bind_plan(plan(), constants, {workspace, slots, 0});
  cuda::RunValues run;
  run.inputs = {7, 0x1000};
  run.outputs = {0x5000};
  run.input_shapes = {{}, {1, 2, 256, 64}};
  run.output_shapes = {{1, 2, 512, 64}};
  EXPECT_EQ(cuda::slot_values(binding.slots, run), (std::vector<uint64_t>{7, 0x5020, 512}));
}

} // namespace
} // namespace zmlx
