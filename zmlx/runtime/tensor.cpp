// zmlx/runtime/tensor.cpp: names, sizes and printing of dtypes and shapes.
#include "zmlx/runtime/tensor.h"

#include <stdexcept>

namespace zmlx {
namespace {

struct DtypeRow {
  const char* name;
  size_t size;
};

constexpr DtypeRow dtype_rows[] = {
    {"bool", 1},
    {"uint8", 1},
    {"uint16", 2},
    {"uint32", 4},
    {"uint64", 8},
    {"int8", 1},
    {"int16", 2},
    {"int32", 4},
    {"int64", 8},
    {"float16", 2},
    {"bfloat16", 2},
    {"float32", 4},
};

} // namespace

size_t size_of(Dtype dtype) {
  return dtype_rows[static_cast<size_t>(dtype)].size;
}

const char* name_of(Dtype dtype) {
  return dtype_rows[static_cast<size_t>(dtype)].name;
}

void Shape::push_back(int64_t dim) {
  if (rank_ == max_rank) {
    throw std::invalid_argument("[zmlx] an array may have at most 8 axes.");
  }
  dims_[static_cast<size_t>(rank_++)] = dim;
}

std::string to_string(const Shape& shape) {
  std::string out = "(";
  for (int i = 0; i < shape.rank(); ++i) {
    out += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return out + (shape.rank() == 1 ? ",)" : ")");
}

std::string to_string(const Type& type) {
  return name_of(type.dtype) + to_string(type.shape);
}

} // namespace zmlx
