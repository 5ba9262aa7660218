// zmlx/runtime/reduce_task.h: a compiled reduction on the thread team.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "zmlx/runtime/gather.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/team.h"

namespace zmlx {

/// What reduce_text() (kernel/lang/reduce.h) compiles to.
struct ReduceFunctions {
  std::shared_ptr<const jit::Library> library;
  void (*start)(void* acc, int64_t n) = nullptr;
  void (*rows)(const void* const* in, void* acc, int64_t n) = nullptr;
  void (*columns)(const void* const* in, void* acc, int64_t n) = nullptr;
  void (*merge)(void* acc, const void* parts, int64_t n) = nullptr;
  void (*finish)(const void* acc, void* out, int64_t n, int64_t count) = nullptr;
};

/// In the inputs' order, rows: kept axes, then reduced ones; columns: the other way round. What is
/// added up in which order does not depend on the number of threads.
struct ReduceTask {
  ReduceFunctions f;
  std::vector<Strided> in{};
  char* out = nullptr;
  int64_t out_bytes = 0; // of an element
  int64_t acc_bytes = 0;
  int64_t kept = 1;
  int64_t reduced = 1;
  bool columns = false;

  void operator()() const;
};

} // namespace zmlx
