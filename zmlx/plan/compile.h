// zmlx/plan/compile.h: any function of arrays, traced once a signature, rewritten, and replayed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "zmlx/graph/rewrite.h"
#include "zmlx/ops/op.h"

namespace zmlx {

using Function = std::function<Arrays(const Arrays&)>;

/// A function that computes what `fn` computes, as mx::compile does: traced on the first call with
/// new shapes or dtypes, arrays that `fn` captures taken as constants. Where every node has a CPU
/// kernel the call is one node of MLX's graph, else MLX's own nodes with the fused ones among them.
/// Inside a transformation (grad, vmap, compile) `fn` itself runs.
Function compile(Function fn, RewriteOptions options = {});

} // namespace zmlx
