// zmlx/kernel/cuda/moe.cpp: which instantiations of moe.cuh, on how many blocks.
#include "zmlx/kernel/cuda/moe.h"

#include <bit>

#include "zmlx/kernel/cuda/dot.h"

namespace zmlx::cuda {

namespace {

constexpr int64_t warps = 8;

int flags_of(const Moe& moe) {
  return (moe.has_residual ? 4 : 0) | (moe.exact ? 8 : 0);
}

std::string instance(const char* kernel, const Moe& moe) {
  return std::string(kernel) + "<" + text_of(moe.dtype) + ", " + text_of(moe.format) + ">";
}

} // namespace

void push_choice(std::vector<Launch>& launches, const Choice& choice) {
  const auto a_lane = std::bit_ceil(static_cast<uint64_t>(ceil_div(choice.experts, 32)));
  Launch launch;
  launch.source = "moe.cuh";
  launch.kernel = "choose_experts<" + text_of(choice.dtype) + ", " + std::to_string(a_lane) + ">";
  launch.grid[0] = static_cast<uint32_t>(ceil_div(choice.tokens, 4));
  launch.block[0] = 128;
  launch.arguments = {
      choice.logits,
      choice.indices,
      choice.weights,
      i32(choice.tokens),
      i32(choice.experts),
      i32(choice.k),
      i32(choice.normalize),
      i32(choice.exact)};
  launches.push_back(std::move(launch));
}

void push_moe(std::vector<Launch>& launches, const Moe& moe, const Device& device) {
  const Dot dot{moe.format};
  const size_t first_shared = dot.shared(1, moe.width, 2 * warps);
  const size_t second_shared = dot.shared(moe.chosen, moe.inner, moe.chosen);
  const bool on_tensor_cores = dot.takes(moe.dtype, moe.width) && dot.takes(moe.dtype, moe.inner) &&
      first_shared <= device.shared_bytes && second_shared <= device.shared_bytes;
  const int64_t tile = on_tensor_cores ? 16 : 8; // elements a block makes

  Launch first;
  first.source = "moe.cuh";
  first.kernel = instance(on_tensor_cores ? "moe_gate_up" : "moe_gate_up_any", moe);
  first.grid = {
      static_cast<uint32_t>(moe.tokens * moe.chosen),
      static_cast<uint32_t>(ceil_div(moe.inner, tile)),
      1};
  first.block[0] = 32 * warps;
  first.shared = on_tensor_cores ? first_shared : 0;
  first.arguments = {moe.x, moe.indices};
  push_weight(first.arguments, moe.format, moe.gate);
  push_weight(first.arguments, moe.format, moe.up);
  first.arguments.insert(
      first.arguments.end(),
      {moe.hidden,
       i32(moe.width),
       i32(moe.inner),
       i32(moe.chosen),
       i32(moe.experts),
       i32(flags_of(moe))});

  Launch second;
  second.source = "moe.cuh";
  second.kernel = instance(on_tensor_cores ? "moe_down" : "moe_down_any", moe);
  second.grid = {
      static_cast<uint32_t>(moe.tokens), static_cast<uint32_t>(ceil_div(moe.out_width, tile)), 1};
  second.block[0] = 32 * warps;
  second.shared = on_tensor_cores ? second_shared : 0;
  second.arguments = {moe.hidden, moe.indices, moe.weights};
  push_weight(second.arguments, moe.format, moe.down);
  second.arguments.insert(
      second.arguments.end(),
      {moe.has_residual ? moe.residual : moe.hidden,
       moe.out,
       i32(moe.inner),
       i32(moe.out_width),
       i32(moe.chosen),
       i32(moe.experts),
       i32(flags_of(moe))});
  launches.push_back(std::move(first));
  launches.push_back(std::move(second));
}

} // namespace zmlx::cuda
