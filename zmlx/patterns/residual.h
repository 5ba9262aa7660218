// zmlx/patterns/residual.h: the parts of a pattern that takes a residual into the op before it.
#pragma once

#include "zmlx/patterns/pattern.h"

namespace zmlx {

/// Left side: the op on all variables but the last, plus the last.
Build plus_residual(const char* op);
/// Attributes of the matched op; nothing when it has a residual or several outputs.
std::function<std::optional<Attrs>(const Match&)> without_residual(const char* op);
/// Right side: the op with residual=1.
Build with_residual(const char* op);

/// What must be kept: the residual less the op's result, and a result that others read too.
Build residual_less(const char* op);
Build residual_and_result(const char* op);

} // namespace zmlx
