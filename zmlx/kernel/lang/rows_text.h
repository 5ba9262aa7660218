// zmlx/kernel/lang/rows_text.h: what row kernels look like in every language.
#pragma once

#include <functional>
#include <string>

#include "zmlx/kernel/lang/rows.h"
#include "zmlx/kernel/lang/statements.h"

namespace zmlx::lang {

/// A struct row_sum, ... with of(a, b) for each reduction that the program has.
std::string reductions_text(const Program& program);

/// What a pass does for one element, but for results: loaded(input) and restored(step) say where
/// values are.
std::string element_text(
    const Program& program,
    const Pass& pass,
    const Statements& body,
    const std::function<std::string(int)>& loaded,
    const std::function<std::string(int)>& restored);

} // namespace zmlx::lang
