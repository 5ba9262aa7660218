// zmlx/runtime/cuda/functions.h: launches' instantiations as functions that a device can run.
#pragma once

#include <vector>

#include "zmlx/runtime/cuda/driver.h"

namespace zmlx::cuda {

/// One function a launch, in order. What is not known yet is compiled, sources side by side, and
/// stays loaded. Throws std::runtime_error with the compiler's log.
std::vector<Function> functions(const Gpu& gpu, const std::vector<const Launch*>& launches);

} // namespace zmlx::cuda
