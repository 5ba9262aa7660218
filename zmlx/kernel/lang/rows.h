// zmlx/kernel/lang/rows.h: kernels that reduce rows and use the results: their steps cut into
// passes over the row, and what each pass computes, keeps and reduces.
#pragma once

#include <vector>

#include "zmlx/kernel/lang/lower.h"

namespace zmlx::lang {

/// One walk over the elements of a row. Numbers are those of steps.
struct Pass {
  std::vector<int> before; // of the row: computed once, before the walk
  std::vector<int> restored; // of an element: kept by an earlier pass
  std::vector<int> each; // of an element: loaded or computed here
  std::vector<int> kept; // those of `each` that later passes restore
  std::vector<int> reduces; // reductions of what is here
  bool in_order = false; // whether they are folds, which take one element after the other
  bool writes = false; // whether results of an element are written
};

struct Schedule {
  std::vector<Pass> passes;
  std::vector<int> after; // of the row, computed behind the last pass
  std::vector<int> kept; // all that is kept, a slot each
};

/// What later passes do not compute or load anew.
enum class Keep : uint8_t { nothing, expensive, expensive_and_inputs };

/// The passes: all reductions whose arguments can be had at the same time share one, results of an
/// element are written in the last. Expensive are calls such as exp, and what is made of them.
Schedule schedule(const Program& program, Keep keep);

} // namespace zmlx::lang
