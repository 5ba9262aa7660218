// zmlx/kernel/cuda/moe.cpp: which instantiations of moe.cuh, on how many blocks.
#include "zmlx/kernel/cuda/moe.h"

#include <algorithm>
#include <bit>

#include "zmlx/kernel/cuda/dot.h"
#include "zmlx/kernel/cuda/gemm.h"

namespace zmlx::cuda {

namespace {

constexpr int64_t warps = 8;

int flags_of(const Moe& moe) {
  return (moe.has_residual ? 4 : 0) | (moe.exact ? 8 : 0);
}

/// Logits that a lane has of each token, a power of two.
std::string experts_a_lane(int64_t experts) {
  return std::to_string(std::bit_ceil(static_cast<uint64_t>(ceil_div(experts, 32))));
}

/// How tensor cores take a few tokens' products, if they do.
struct FewTokens {
  RowPart first; // gate and up
  RowPart second; // an expert's down is one warp's
  int64_t second_warps;
  size_t first_shared;
  size_t second_shared;
  bool fits;

  FewTokens(const Moe& moe, const Device& device)
      : first(RowPart::of(moe.format, moe.width, moe.inner, RowPart::warps)),
        second(RowPart::of(moe.format, moe.inner, moe.out_width, 1)),
        second_warps(std::min(moe.chosen, RowPart::warps)),
        first_shared(first.block_shared(2)),
        second_shared(
            static_cast<size_t>((18 * moe.chosen + 3) / 4 * 16) +
            static_cast<size_t>(second_warps) * second.shared()) {
    const Dot dot{moe.format};
    fits = dot.takes(moe.dtype, moe.width) && dot.takes(moe.dtype, moe.inner) && first.fits() &&
        second.fits() && first_shared <= device.shared_bytes &&
        second_shared <= device.shared_bytes;
  }
};

/// Memory after what the kernel has.
Argument add_scratch(Kernel& kernel, size_t bytes) {
  const size_t at = (kernel.scratch + 255) / 256 * 256;
  kernel.scratch = at + bytes;
  return scratch(at);
}

/// With `choice`, the experts are chosen from its logits.
void push_few(Kernel& kernel, const Moe& moe, const Choice* choice, const Device& device) {
  const Argument hidden = add_scratch(
      kernel, static_cast<size_t>(moe.tokens * moe.chosen * moe.inner) * size_of(moe.dtype));
  const FewTokens few(moe, device);
  const int64_t tile = few.fits ? 16 : 8; // elements a block makes
  const int flags = flags_of(moe) | (choice && choice->normalize ? 32 : 0);
  auto instance = [&](const char* name, const RowPart& part) {
    const std::string types = text_of(moe.dtype) + ", " + text_of(moe.format);
    return few.fits ? std::string(name) + "<" + types + ", " + part.text() + ", " +
            (choice ? experts_a_lane(moe.experts) : "0") + ">"
                    : std::string(name) + "_any<" + types + ">";
  };

  Launch first;
  first.source = "moe.cuh";
  first.kernel = instance("moe_gate_up", few.first);
  first.grid = {
      static_cast<uint32_t>(moe.tokens * moe.chosen),
      static_cast<uint32_t>(ceil_div(moe.inner, tile)),
      1};
  first.block[0] = static_cast<uint32_t>(32 * (few.fits ? few.first.shares : warps));
  first.shared = few.fits ? few.first_shared : 0;
  first.arguments = {moe.x, choice ? choice->logits : moe.indices};
  push_weight(first.arguments, moe.format, moe.gate);
  push_weight(first.arguments, moe.format, moe.up);
  first.arguments.insert(
      first.arguments.end(),
      {hidden, i32(moe.width), i32(moe.inner), i32(moe.chosen), i32(moe.experts), i32(flags)});

  Launch second;
  second.source = "moe.cuh";
  second.kernel = instance("moe_down", few.second);
  second.grid = {
      static_cast<uint32_t>(moe.tokens), static_cast<uint32_t>(ceil_div(moe.out_width, tile)), 1};
  second.block[0] = static_cast<uint32_t>(32 * (few.fits ? few.second_warps : warps));
  second.shared = few.fits ? few.second_shared : 0;
  second.arguments = {
      hidden, choice ? choice->logits : moe.indices, choice ? choice->logits : moe.weights};
  push_weight(second.arguments, moe.format, moe.down);
  second.arguments.insert(
      second.arguments.end(),
      {moe.has_residual ? moe.residual : hidden,
       moe.out,
       i32(moe.inner),
       i32(moe.out_width),
       i32(moe.chosen),
       i32(moe.experts),
       i32(flags)});
  kernel.launches.push_back(std::move(first));
  kernel.launches.push_back(std::move(second));
}

GemmWeight gemm_weight(WeightFormat format, int at) {
  std::vector<Argument> arrays;
  push_weight(arrays, format, at);
  return {arrays[0], arrays[1], arrays[2]};
}

/// Pairs sorted by expert, so that each expert's are rows of one product; then each token's rows
/// are brought together.
void push_prompt(Kernel& kernel, const Moe& moe, const Device& device) {
  const int64_t pairs = moe.tokens * moe.chosen;
  const size_t size = size_of(moe.dtype);
  const auto indices = static_cast<size_t>(pairs) * sizeof(int32_t);
  const Argument offsets =
      add_scratch(kernel, static_cast<size_t>(moe.experts + 1) * sizeof(int32_t));
  const Argument order = add_scratch(kernel, indices);
  const Argument place = add_scratch(kernel, indices);
  const Argument hidden = add_scratch(kernel, static_cast<size_t>(pairs * moe.inner) * size);
  const Argument y = add_scratch(kernel, static_cast<size_t>(pairs * moe.out_width) * size);

  Launch sort;
  sort.source = "moe_prompt.cuh";
  sort.kernel = "sort_pairs";
  sort.block[0] = 1024;
  sort.shared = static_cast<size_t>(moe.experts) * sizeof(int32_t);
  sort.arguments = {moe.indices, offsets, order, place, i32(pairs), i32(moe.experts)};
  kernel.launches.push_back(std::move(sort));

  GroupedGemmTask task{
      moe.dtype,
      moe.format,
      pairs,
      moe.experts,
      moe.chosen,
      moe.inner,
      moe.width,
      moe.x,
      order,
      offsets,
      gemm_weight(moe.format, moe.gate),
      gemm_weight(moe.format, moe.up),
      hidden};
  append_grouped_gemm(kernel, task, device);
  task.n = moe.out_width;
  task.k = moe.inner;
  task.x = hidden;
  task.order.reset();
  task.weight = gemm_weight(moe.format, moe.down);
  task.up.reset();
  task.y = y;
  append_grouped_gemm(kernel, task, device);

  Launch combine;
  combine.source = "moe_prompt.cuh";
  combine.kernel = "combine_pairs<" + text_of(moe.dtype) + ">";
  combine.grid = {
      static_cast<uint32_t>(moe.tokens), static_cast<uint32_t>(ceil_div(moe.out_width, 256)), 1};
  combine.block[0] = 256;
  combine.arguments = {
      y,
      place,
      moe.indices,
      moe.weights,
      moe.has_residual ? moe.residual : y,
      moe.out,
      i32(moe.out_width),
      i32(moe.chosen),
      i32(moe.experts),
      i32(moe.has_residual)};
  kernel.launches.push_back(std::move(combine));
}

bool is_prompt(const Moe& moe) {
  return moe.tokens > few_rows && moe.experts <= Choice::max_experts &&
      gemm_supports(moe.dtype, moe.format, moe.width) &&
      gemm_supports(moe.dtype, moe.format, moe.inner);
}

} // namespace

void push_router(Kernel& kernel, const Linear& router, const Choice& choice, const Device& device) {
  push_linear(kernel, router, device);
  constexpr int64_t tokens_a_block = 4; // a warp each
  Launch launch;
  launch.source = "choice.cuh";
  launch.kernel =
      "choose_experts<" + text_of(choice.dtype) + ", " + experts_a_lane(choice.experts) + ">";
  launch.grid[0] = static_cast<uint32_t>(ceil_div(choice.tokens, tokens_a_block));
  launch.block[0] = 32 * tokens_a_block;
  launch.arguments = {
      choice.logits,
      choice.indices,
      choice.weights,
      i32(choice.tokens),
      i32(choice.experts),
      i32(choice.k),
      i32(choice.normalize),
      i32(choice.exact)};
  kernel.launches.push_back(std::move(launch));
}

void push_moe(Kernel& kernel, const Moe& moe, const Device& device) {
  is_prompt(moe) ? push_prompt(kernel, moe, device) : push_few(kernel, moe, nullptr, device);
}

void push_routed_moe(
    Kernel& kernel,
    const Linear& router,
    const Choice& choice,
    const Moe& moe,
    const Device& device) {
  if (is_prompt(moe) || !FewTokens(moe, device).fits) {
    push_router(kernel, router, choice, device);
    return push_moe(kernel, moe, device);
  }
  push_linear(kernel, router, device);
  push_few(kernel, moe, &choice, device);
}

} // namespace zmlx::cuda
