// python/src/metal.h: kernels written as bodies of Metal functions, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace zmlx {

/// Adds the class MetalKernel to the module.
void bind_metal(nanobind::module_& m);

} // namespace zmlx
