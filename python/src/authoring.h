// python/src/authoring.h: kernels written as expressions, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace zmlx {

/// Adds the class Elementwise and jit_compile_count to the module.
void bind_authoring(nanobind::module_& m);

} // namespace zmlx
