// zmlx/runtime/metal_task.h: a kernel that is written as a Metal function's body, run over the
// thread team.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/metal_kernel.h"

namespace zmlx {

/// A kernel for one set of dtypes.
struct MetalProgram {
  msl::Program texts;
  const std::string* cuda; // its text as launches share it
  std::shared_ptr<const jit::Library> library;
  msl::Run run = nullptr;
};

/// Threadgroups of a call, the last along each axis cut by the grid.
int64_t groups_of(const MetalCall& call);

/// One call on the CPU: pointers to arrays that exist.
struct MetalTask {
  std::shared_ptr<const MetalProgram> program;
  MetalCall call;
  std::vector<const void*> in;
  std::vector<void*> out;
  std::vector<std::vector<int>> shapes;
  std::vector<std::vector<int64_t>> strides;
  std::vector<std::pair<size_t, const void*>> copies; // into outputs, of what stands there before
  std::vector<size_t> bytes;

  void operator()() const;
};

} // namespace zmlx
