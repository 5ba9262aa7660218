// zmlx/runtime/expression_graph.h: expressions of the kernel language as plain MLX.
#pragma once

#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/lang/lower.h"

namespace zmlx {

namespace mx = mlx::core;

/// The program's results for these inputs, of dtypes `out`: the oracle of generated kernels, and
/// what runs where they cannot be compiled. With `rows`, results of a row have one element.
std::vector<mx::array> expression_graph(
    const lang::Program& program,
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Dtype>& out,
    bool rows = false,
    mx::StreamOrDevice s = {});

} // namespace zmlx
