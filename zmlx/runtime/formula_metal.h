// zmlx/runtime/formula_metal.h: a formula as a Metal kernel on given arrays, for whoever runs it.
#pragma once

#include "zmlx/ops/formula.h"
#include "zmlx/runtime/rowwise_gpu.h"

namespace zmlx {

struct FormulaMetal {
  Arrays inputs; // views of the op's, and the formula's numbers
  MetalRows rows;
};

/// For inputs that are row-contiguous and in memory, and that formula.fits().
FormulaMetal formula_metal(
    const FormulaKernel& formula,
    const Arrays& inputs,
    const Type& out,
    const Attrs& attrs);

} // namespace zmlx
