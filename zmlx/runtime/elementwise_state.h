// zmlx/runtime/elementwise_state.h: what an elementwise kernel has made so far, for each set of
// dtypes.
#pragma once

#include <map>
#include <mutex>

#include "zmlx/runtime/elementwise.h"
#include "zmlx/runtime/elementwise_gpu.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/rowwise.h"

namespace zmlx {

using Run = void (*)(const void* const*, void* const*, int64_t);

/// A spec's steps for given dtypes, and what is stored.
struct Lowered {
  lang::Program program;
  std::vector<Dtype> in;
  std::vector<Dtype> out;

  lang::ElementwiseText text() const {
    return {program, in, out};
  }
};
/// `rows` says which inputs have one value a row.
Lowered lowered(
    const ElementwiseSpec& spec,
    const std::vector<lang::Typed>& types,
    const std::vector<bool>& rows = {});
/// Types of arrays, those that are `weak` giving way.
std::vector<lang::Typed> typed(const std::vector<mx::array>& inputs, const std::vector<bool>& weak);
/// Whether generated kernels can be compiled for the device; says so once if not.
bool has_compiler(const mx::Device& device);
/// The spec of the gradients of the arguments `argnums`: its inputs are followed by a cotangent for
/// each output or, where gradients are given, by `g` and the result `y`.
ElementwiseSpec gradient_spec(
    const ElementwiseSpec& spec,
    const std::vector<int>& argnums,
    const std::vector<bool>& rows = {});

/// A kernel for given dtypes.
struct Specialised : Lowered {
  std::once_flag once{};
  std::shared_ptr<const jit::Library> library{};
  Run run = nullptr;
  CudaTexts cuda_texts{};

  /// Compiles on first use.
  void compile();
};

struct Elementwise::State {
  explicit State(ElementwiseSpec s);

  /// Everything that depends on dtypes alone, made once.
  Specialised& specialise(const std::vector<lang::Typed>& types);
  /// The kernel of the gradients of the arguments `argnums`.
  Elementwise gradient(const std::vector<int>& argnums);

  const ElementwiseSpec spec;
  const std::optional<Rowwise> rows; // of a spec that reduces rows

 private:
  std::mutex mutex_;
  std::map<std::vector<std::pair<Dtype, bool>>, std::unique_ptr<Specialised>> specialised_;
  std::map<std::vector<int>, Elementwise> gradients_;
};

} // namespace zmlx
