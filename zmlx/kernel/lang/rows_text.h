// zmlx/kernel/lang/rows_text.h: what row kernels look like in every language.
#pragma once

#include <functional>
#include <string>

#include "zmlx/kernel/lang/rows.h"
#include "zmlx/kernel/lang/statements.h"

namespace zmlx::lang {

/// A struct row_sum, ... with of(a, b) for each reduction that the program has, and a function
/// fold_... for each fold.
std::string reductions_text(const Program& program, const Spelling& in);

/// `s_t3 = fold_t3(s_t3, x0);` of a fold.
std::string fold_text(const Program& program, int step, const Statements& body);

/// What a pass does for one element, but for results: loaded(input) and restored(step) say where
/// values are.
std::string element_text(
    const Program& program,
    const Pass& pass,
    const Statements& body,
    const std::function<std::string(int)>& loaded,
    const std::function<std::string(int)>& restored);

} // namespace zmlx::lang
