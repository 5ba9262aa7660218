// zmlx/kernel/cuda/moe.h: launches for a mixture of experts of a few tokens.
#pragma once

#include "zmlx/kernel/cuda/linear.h"

namespace zmlx::cuda {

/// The k most likely of each row of logits; at most max_experts.
struct Choice {
  static constexpr int64_t max_experts = 512;
  Dtype dtype;
  int64_t tokens;
  int64_t experts;
  int64_t k;
  Argument logits;
  Argument indices;
  Argument weights;
  bool normalize = false;
  bool exact = false; // rounds the sum
};
/// The router's logits (its one output, choice.logits) and the choice.
void push_router(Kernel& kernel, const Linear& router, const Choice& choice, const Device& device);

/// sum over j of weights[., j] * down_e(silu(gate_e(x)) * up_e(x)), e = indices[., j].
struct Moe {
  Dtype dtype;
  WeightFormat format;
  int64_t tokens;
  int64_t chosen;
  int64_t experts;
  int64_t width; // of x
  int64_t inner;
  int64_t out_width;
  Argument x;
  Argument indices;
  Argument weights;
  int gate; // the inputs where each begins
  int up;
  int down;
  bool has_residual = false;
  Argument residual{};
  Argument out;
  bool exact = false;
};
/// Appends the launches, and what scratch they need to what `kernel` has. Prompts do not round
/// between steps.
void push_moe(Kernel& kernel, const Moe& moe, const Device& device);
/// The router, and the experts that it chooses, whose indices and weights `moe` reads where
/// `choice` has them. For few tokens the experts' launches choose for themselves, and those stay
/// unwritten.
void push_routed_moe(
    Kernel& kernel,
    const Linear& router,
    const Choice& choice,
    const Moe& moe,
    const Device& device);

} // namespace zmlx::cuda
