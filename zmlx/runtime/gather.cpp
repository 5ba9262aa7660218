// zmlx/runtime/gather.cpp: runs of the innermost axis: copies, fills, or strided loops.
#include "zmlx/runtime/gather.h"

#include <algorithm>

namespace zmlx {

void Strided::add(int64_t extent, int64_t stride) {
  if (extent == 1) {
    return;
  }
  if (!dims_.empty() && dims_.back().stride == stride * extent) {
    dims_.back() = {dims_.back().extent * extent, stride};
  } else {
    dims_.push_back({extent, stride});
  }
}

template <typename T>
void Strided::gather_as(int64_t i, int64_t n, T* to) const {
  auto* data = reinterpret_cast<const T*>(data_);
  auto [extent, stride] = dims_.back();
  while (n > 0) {
    // A division an axis for each run: runs are long where it matters.
    int64_t rest = i / extent;
    int64_t inner = constant() ? 0 : i % extent;
    int64_t offset = inner * stride;
    for (size_t d = dims_.size() - 1; d-- > 0;) {
      offset += rest % dims_[d].extent * dims_[d].stride;
      rest /= dims_[d].extent;
    }
    int64_t run = constant() ? n : std::min(n, extent - inner);
    const T* from = data + offset;
    if (stride == 1) {
      std::copy_n(from, run, to);
    } else if (stride == 0) {
      std::fill_n(to, run, *from);
    } else {
      for (int64_t k = 0; k < run; ++k) {
        to[k] = from[k * stride];
      }
    }
    to += run;
    i += run;
    n -= run;
  }
}

void Strided::gather(int64_t i, int64_t n, void* to) const {
  switch (size_) {
    case 1:
      return gather_as(i, n, static_cast<uint8_t*>(to));
    case 2:
      return gather_as(i, n, static_cast<uint16_t*>(to));
    case 4:
      return gather_as(i, n, static_cast<uint32_t*>(to));
    default:
      return gather_as(i, n, static_cast<uint64_t*>(to));
  }
}

} // namespace zmlx
