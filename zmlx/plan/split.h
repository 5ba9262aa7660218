// zmlx/plan/split.h: cuts a graph in two, so that what only some outputs need is computed only when
// they are asked for.
#pragma once

#include <vector>

#include "zmlx/graph/ir.h"

namespace zmlx {

/// `first` computes the outputs named in `wanted` and everything that `second` needs of it;
/// `second` the other outputs.
struct SplitGraph {
  Graph first;
  Graph second; // no outputs when `first` is the whole graph

  /// Where an input of `second` comes from: an input of the whole graph, or an output of `first`.
  struct Source {
    bool is_input;
    int index;
  };
  std::vector<Source> sources;
  std::vector<int> first_outputs; // output of the whole graph for the first outputs of `first`
  std::vector<int> second_outputs; // the same for `second`
};

/// A prompt's logits are rarely read: `wanted` are then the KV buffers.
SplitGraph split(const Graph& graph, const std::vector<int>& wanted);

} // namespace zmlx
