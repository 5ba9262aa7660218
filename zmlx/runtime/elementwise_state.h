// zmlx/runtime/elementwise_state.h: what an elementwise kernel has made so far, for each set of
// dtypes.
#pragma once

#include <map>
#include <mutex>

#include "zmlx/runtime/elementwise.h"
#include "zmlx/runtime/elementwise_gpu.h"
#include "zmlx/runtime/jit.h"

namespace zmlx {

using Run = void (*)(const void* const*, void* const*, int64_t);

/// A kernel for given dtypes.
struct Specialised {
  lang::Program program;
  std::vector<Dtype> in;
  std::vector<Dtype> out;
  std::once_flag once{};
  std::shared_ptr<const jit::Library> library{};
  Run run = nullptr;
  CudaTexts cuda_texts{};

  lang::ElementwiseText text() const {
    return {program, in, out};
  }
  /// Compiles on first use.
  void compile();
};

struct Elementwise::State {
  explicit State(ElementwiseSpec s) : spec(std::move(s)) {}

  /// Everything that depends on dtypes alone, made once.
  Specialised& specialise(const std::vector<lang::Typed>& types);
  /// The kernel of the gradients of the arguments `argnums`.
  Elementwise gradient(const std::vector<int>& argnums);

  const ElementwiseSpec spec;

 private:
  std::mutex mutex_;
  std::map<std::vector<std::pair<Dtype, bool>>, std::unique_ptr<Specialised>> specialised_;
  std::map<std::vector<int>, Elementwise> gradients_;
};

} // namespace zmlx
