// zmlx/plan/step.h: a model's captured step: token ids, offset and KV buffers in; logits and KV
// buffers out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zmlx/plan/execute.h"
#include "zmlx/plan/split.h"

namespace zmlx {

/// The plans of a step's parts, one or two; fewer, and `reasons`, where there are none.
std::vector<std::shared_ptr<const Plan>> plan_parts(
    const SplitGraph& parts,
    std::vector<std::string>& reasons,
    const std::optional<cuda::Device>& device = {});

/// A step's graph cut so that with `lazy_logits` only the buffers are computed at first.
SplitGraph split_step(const Graph& graph, bool lazy_logits);

/// Inputs: the tokens, the offset, for padded sequences their positions, then the buffers. Outputs:
/// the logits, then the buffers. For a prompt the logits are a run of their own, made only when
/// they are read.
class Step {
 public:
  /// Plans a rewritten graph of that form for the CPU or a GPU. With `lazy_logits` it is cut in
  /// two. `reasons` says why there is no step.
  static std::shared_ptr<Step> make(
      const Graph& graph,
      bool lazy_logits,
      std::vector<std::string>& reasons,
      const std::optional<cuda::Device>& device = {});

  /// Lazy logits and buffers; `buffer_shapes` are the buffers' shapes afterwards.
  Arrays operator()(
      const Arrays& inputs,
      const std::vector<mx::Shape>& buffer_shapes,
      mx::StreamOrDevice s) const;

  /// The plans, one or two.
  std::vector<const Plan*> plans() const;

 private:
  SplitGraph split_;
  std::shared_ptr<Executable> first_;
  std::shared_ptr<Executable> second_;
};

} // namespace zmlx
