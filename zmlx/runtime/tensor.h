// zmlx/runtime/tensor.h: what a kernel sees of an array: a pointer, a dtype and a shape. Knows
// nothing of MLX.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace zmlx {

enum class Dtype : uint8_t { boolean, u8, u16, u32, u64, i8, i16, i32, i64, f16, bf16, f32 };

/// Bytes of one element.
size_t size_of(Dtype dtype);
/// "float32", "bfloat16", ...: MLX's own names.
const char* name_of(Dtype dtype);
inline bool is_floating(Dtype dtype) {
  return dtype >= Dtype::f16;
}

/// Up to eight extents, row-major, held inline so that a step allocates nothing.
class Shape {
 public:
  static constexpr int max_rank = 8;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(dims.begin(), dims.end()) {}
  template <typename It>
  Shape(It first, It last) {
    for (; first != last; ++first) {
      push_back(*first);
    }
  }

  int rank() const {
    return rank_;
  }
  /// Extent of an axis; negative axes count from the end.
  int64_t operator[](int axis) const {
    return dims_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)];
  }
  int64_t& operator[](int axis) {
    return dims_[static_cast<size_t>(axis < 0 ? axis + rank_ : axis)];
  }
  /// Throws std::invalid_argument past max_rank.
  void push_back(int64_t dim);
  /// Number of elements.
  int64_t size() const {
    int64_t n = 1;
    for (int64_t d : *this) {
      n *= d;
    }
    return n;
  }
  /// Elements over all axes but the last: the rows of a matrix view.
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank_; ++i) {
      n *= (*this)[i];
    }
    return n;
  }
  const int64_t* begin() const {
    return dims_.data();
  }
  const int64_t* end() const {
    return dims_.data() + rank_;
  }
  bool operator==(const Shape& other) const {
    return rank_ == other.rank_ && std::equal(begin(), end(), other.begin());
  }

 private:
  std::array<int64_t, max_rank> dims_{};
  int rank_ = 0;
};

/// "(1, 32, 128)".
std::string to_string(const Shape& shape);

/// Dtype and shape of a value in a graph.
struct Type {
  Dtype dtype = Dtype::f32;
  Shape shape;

  size_t bytes() const {
    return static_cast<size_t>(shape.size()) * size_of(dtype);
  }
  bool operator==(const Type& other) const {
    return dtype == other.dtype && shape == other.shape;
  }
};

/// "bfloat16(1, 32, 128)".
std::string to_string(const Type& type);

/// A row-contiguous array in memory; the memory belongs to somebody else.
struct Tensor {
  void* data = nullptr;
  Type type;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
  const Shape& shape() const {
    return type.shape;
  }
  Dtype dtype() const {
    return type.dtype;
  }
};

} // namespace zmlx
