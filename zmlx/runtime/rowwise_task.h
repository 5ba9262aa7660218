// zmlx/runtime/rowwise_task.h: a compiled row kernel on the thread team.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "zmlx/runtime/broadcast.h"
#include "zmlx/runtime/gather.h"
#include "zmlx/runtime/jit.h"

namespace zmlx {

/// What cpp_rows_text() (kernel/lang/print_rows.h) compiles to.
using RunRows = void (*)(
    const void* const* in,
    const int64_t* in_steps,
    void* const* out,
    const int64_t* out_steps,
    int64_t rows,
    int64_t n,
    char* kept);

/// Rows are whole: each is one thread's, so results do not depend on the number of threads.
struct RowTask {
  struct Input {
    const char* data;
    int64_t bytes; // of an element
    std::optional<Strided> gathered{}; // where a row is not contiguous
  };

  std::shared_ptr<const jit::Library> library;
  RunRows run;
  int64_t rows;
  int64_t n; // elements of a row
  size_t kept; // bytes
  Axes axes{}; // all but the last
  std::vector<Input> in{};
  std::vector<char*> out{};
  std::vector<int64_t> out_steps{}; // bytes from row to row

  void operator()() const;
};

} // namespace zmlx
