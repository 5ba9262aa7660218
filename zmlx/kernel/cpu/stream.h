// zmlx/kernel/cpu/stream.h: how work on arrays larger than the caches is shared out and written.
#pragma once

#include <algorithm>
#include <cstdint>

#include "hwy/cache_control.h"
#include "zmlx/runtime/team.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

// Half of a usual last-level cache: what is written now is gone from it before anybody reads it.
inline constexpr size_t past_cache_bytes = size_t{16} << 20;

// Longer rows are written as usual.
inline constexpr int64_t past_cache_row = 16 << 10;

/// Whether an output is written past the caches, which spares reading its lines first. Rows of
/// `row_bytes` must begin at whole lines.
inline bool past_cache(const Tensor& out, int64_t row_bytes) {
  return out.type.bytes() >= past_cache_bytes && row_bytes % 64 == 0 &&
      row_bytes <= past_cache_row && reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
}

/// Makes what was written past the caches visible to other threads.
inline void flush_stores() {
  hwy::FlushStream();
}

/// How far ahead of what it reads a kernel asks for a row's elements, which take that many bytes
/// each and lie `stride` elements after the row before: the next row, since the hardware foresees
/// nothing past a page, or in a long row the next page.
inline int64_t row_ahead(int64_t stride, size_t bytes) {
  const auto size = static_cast<int64_t>(bytes);
  return stride * size <= (16 << 10) ? stride : (4 << 10) / size;
}

/// Calls f(Range) on parts of `rows` rows: an equal part for each member, or where the rows are
/// many bytes, chunks taken in turn, so that a member that is held up does not hold up the others.
template <typename F>
void over_rows(Member& member, int64_t rows, int64_t row_bytes, F&& f) {
  constexpr int64_t chunk = int64_t{256} << 10;
  if (member.size() > 1 && rows * row_bytes >= 32 * chunk) {
    member.dynamic(rows, std::max<int64_t>(chunk / std::max<int64_t>(row_bytes, 1), 1), f);
  } else {
    f(member.split(rows));
  }
}

} // namespace zmlx::cpu
