// zmlx/plan/execute_cuda.h: runs a CUDA plan on MLX's stream: small ones as one CUDA graph, others
// launch by launch.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "zmlx/ops/op.h"
#include "zmlx/plan/bind.h"
#include "zmlx/runtime/cuda/driver.h"

namespace zmlx::cuda {

/// How a state came by the memory of its new value.
struct StateCounts {
  uint64_t in_place = 0;
  uint64_t copied = 0;
};

class Executor {
 public:
  /// Compiles the plan's kernels; `constants` are evaluated and row-contiguous. Throws
  /// std::runtime_error in words when there is no GPU or a kernel does not compile.
  Executor(std::shared_ptr<const Plan> plan, Arrays constants);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  /// Queues one run on the stream and gives the outputs their memory. After the plan's inputs come
  /// zeros for new states: `grown[i]` is the input for state i, or -1. `keep` lives until the run
  /// has ended, and `landed` is called then.
  StateCounts run(
      const mx::Stream& stream,
      Arrays inputs,
      Arrays& outputs,
      const std::vector<int>& grown,
      std::shared_ptr<void> keep,
      std::function<void()> landed);

 private:
  struct Prepared;
  struct Chunks;

  const Gpu& gpu_of(const mx::Stream& stream) const;
  Prepared& prepare(Stream stream);
  void prepare_graph(Prepared& prepared);
  void launch_all(const Prepared& prepared, Stream stream) const;
  void copy(const Chunks& chunks, Stream stream) const;
  void write_slots(const Prepared& prepared, const RunValues& run, Stream stream) const;

  std::shared_ptr<const Plan> plan_;
  Arrays constants_;
  std::vector<const void*> constant_data_; // where they were when parameters were made
  const Gpu& gpu_;
  std::vector<Function> functions_; // one a launch
  Function write_slots_ = nullptr;
  Function copy_words_ = nullptr;
  Function copy_bytes_ = nullptr;
  std::mutex mutex_;
  std::map<Stream, std::unique_ptr<Prepared>> prepared_;
};

} // namespace zmlx::cuda
