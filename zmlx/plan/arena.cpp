// zmlx/plan/arena.cpp: greedy placement by size (the "greedy by size" of Pisarchyk and Lee,
// arXiv:2001.03288).
#include "zmlx/plan/arena.h"

#include <algorithm>
#include <numeric>

namespace zmlx {
namespace {

constexpr size_t alignment = 64;

size_t aligned(size_t bytes) {
  return (bytes + alignment - 1) / alignment * alignment;
}

bool overlap(const Lifetime& a, const Lifetime& b) {
  return a.first <= b.last && b.first <= a.last;
}

} // namespace

ArenaLayout lay_out(const std::vector<Lifetime>& lifetimes) {
  std::vector<size_t> by_size(lifetimes.size());
  std::iota(by_size.begin(), by_size.end(), size_t{0});
  std::stable_sort(by_size.begin(), by_size.end(), [&](size_t a, size_t b) {
    return lifetimes[a].bytes > lifetimes[b].bytes;
  });

  ArenaLayout layout;
  layout.offsets.resize(lifetimes.size());
  std::vector<size_t> placed; // in order of offset
  for (size_t i : by_size) {
    size_t offset = 0;
    for (size_t other : placed) {
      if (!overlap(lifetimes[i], lifetimes[other])) {
        continue;
      }
      if (offset + aligned(lifetimes[i].bytes) <= layout.offsets[other]) {
        break;
      }
      offset = std::max(offset, layout.offsets[other] + aligned(lifetimes[other].bytes));
    }
    layout.offsets[i] = offset;
    layout.bytes = std::max(layout.bytes, offset + aligned(lifetimes[i].bytes));
    auto at =
        std::upper_bound(placed.begin(), placed.end(), offset, [&](size_t value, size_t other) {
          return value < layout.offsets[other];
        });
    placed.insert(at, i);
  }
  return layout;
}

} // namespace zmlx
