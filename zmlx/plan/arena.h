// zmlx/plan/arena.h: places intermediate values in one block so that values which never live
// together share memory.
#pragma once

#include <cstddef>
#include <vector>

namespace zmlx {

/// A value of `bytes` that is written by launch `first` and last read by launch `last`.
struct Lifetime {
  size_t bytes = 0;
  int first = 0;
  int last = 0;
};

struct ArenaLayout {
  std::vector<size_t> offsets; // one a lifetime, multiples of 64
  size_t bytes = 0;
};

/// Largest values first, each at the lowest offset where no value alive at the same time lies.
ArenaLayout lay_out(const std::vector<Lifetime>& lifetimes);

} // namespace zmlx
