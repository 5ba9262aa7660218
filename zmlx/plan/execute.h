// zmlx/plan/execute.h: runs a plan as one node of MLX's lazy graph.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "mlx/utils.h"
#include "zmlx/plan/plan.h"
#include "zmlx/plan/width.h"

namespace zmlx {

/// The memory of one run: arena, scratch, and every launch's tensors, resolved but for inputs and
/// outputs.
struct Frame;

namespace cuda {
class Executor;
}

/// A plan with its constants in memory and frames to run in. Safe to run from several threads.
class Executable {
 public:
  /// Evaluates the plan's constants and makes them row-contiguous where they are not.
  explicit Executable(std::shared_ptr<const Plan> plan);
  ~Executable();
  Executable(const Executable&) = delete;
  Executable& operator=(const Executable&) = delete;

  const Plan& plan() const {
    return *plan_;
  }
  /// What runs a plan for a GPU; the rest is for the CPU.
  cuda::Executor& gpu() {
    return *gpu_;
  }
  /// A frame for one run; give it back with release(). Small frames are kept for the next run.
  std::unique_ptr<Frame> acquire();
  void release(std::unique_ptr<Frame> frame);
  /// Runs the body on the team or, where that has proved faster, on this thread alone.
  void run(const std::function<void(Member&)>& body);

 private:
  std::shared_ptr<const Plan> plan_;
  std::vector<Tensor> constants_;
  Arrays owners_;
  std::unique_ptr<cuda::Executor> gpu_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Frame>> free_;
  Width width_;
};

/// Lazy outputs of one run. `state_shapes` gives the output shape of each of plan.states: that of
/// its input, or longer along one axis (contents are kept, the rest is zero). A state's buffer is
/// overwritten in place when nobody else holds it, else copied first. Throws std::invalid_argument
/// when inputs do not fit the plan.
Arrays execute(
    std::shared_ptr<Executable> executable,
    const Arrays& inputs,
    const std::vector<mx::Shape>& state_shapes,
    mx::StreamOrDevice s = {});

/// What runs have done since the process began.
struct RunCounts {
  uint64_t in_place = 0; // states written in place
  uint64_t copied = 0; // states copied first
  uint64_t runs = 0;
  double seconds = 0; // inside kernels and their barriers, on the stream's thread
};
RunCounts run_counts();

} // namespace zmlx
