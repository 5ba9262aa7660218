// zmlx/runtime/gather.h: an array of any strides, broadcast to a shape and read in row-major order.
#pragma once

#include <vector>

#include "zmlx/runtime/tensor.h"

namespace zmlx {

/// Axes that memory runs through evenly are joined, so that most arrays have one or two.
class Strided {
 public:
  /// `strides` in elements, of `own`'s axes; the array is read as if it had the shape `as`.
  template <typename Strides>
  Strided(const void* data, size_t size, const Shape& own, const Strides& strides, const Shape& as)
      : data_(static_cast<const char*>(data)), size_(size) {
    for (int i = 0; i < as.rank(); ++i) {
      int axis = i - (as.rank() - own.rank());
      bool moves = axis >= 0 && own[axis] != 1;
      add(as[i], moves ? static_cast<int64_t>(strides[static_cast<size_t>(axis)]) : 0);
    }
    if (dims_.empty()) {
      dims_.push_back({1, 1});
    }
  }

  bool contiguous() const {
    return dims_.size() == 1 && dims_[0].stride == 1;
  }
  bool constant() const {
    return dims_.size() == 1 && dims_[0].stride == 0;
  }
  /// The address of element `i` of a contiguous array.
  const void* at(int64_t i) const {
    return data_ + static_cast<size_t>(i) * size_;
  }
  /// Copies n elements from the i-th on.
  void gather(int64_t i, int64_t n, void* to) const;

 private:
  struct Dim {
    int64_t extent;
    int64_t stride;
  };
  void add(int64_t extent, int64_t stride);
  template <typename T>
  void gather_as(int64_t i, int64_t n, T* to) const;

  const char* data_;
  size_t size_;
  std::vector<Dim> dims_;
};

} // namespace zmlx
