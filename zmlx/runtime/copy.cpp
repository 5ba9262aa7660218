// zmlx/runtime/copy.cpp: strided to row-contiguous, one innermost run at a time.
#include "zmlx/runtime/copy.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "mlx/allocator.h"
#include "zmlx/graph/capture.h"

namespace zmlx {

Tensor tensor_of(const mx::array& a) {
  return {const_cast<char*>(a.data<char>()), type_of(a)};
}

void copy_packed(const mx::array& from, std::byte* to) {
  auto size = static_cast<int64_t>(from.itemsize());
  auto* base = reinterpret_cast<const std::byte*>(from.data<char>());
  int rank = static_cast<int>(from.ndim());
  int run_axis = rank; // the axes from here on are one contiguous run
  int64_t run = 1;
  while (
      run_axis > 0 &&
      (from.strides()[static_cast<size_t>(run_axis - 1)] == run || from.shape(run_axis - 1) == 1)) {
    run *= from.shape(--run_axis);
  }
  if (from.size() == 0) {
    return;
  }
  std::vector<int64_t> index(static_cast<size_t>(run_axis), 0);
  int64_t runs = static_cast<int64_t>(from.size()) / run;
  for (int64_t n = 0; n < runs; ++n) {
    int64_t offset = 0;
    for (size_t d = 0; d < index.size(); ++d) {
      offset += index[d] * from.strides()[d];
    }
    std::copy_n(base + offset * size, run * size, to + n * run * size);
    for (int d = run_axis - 1; d >= 0 && ++index[static_cast<size_t>(d)] == from.shape(d); --d) {
      index[static_cast<size_t>(d)] = 0;
    }
  }
}

Tensor packed_tensor(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  if (a.flags().row_contiguous) {
    return tensor_of(a);
  }
  mx::array packed(a.shape(), a.dtype(), nullptr, {});
  packed.set_data(mx::allocator::malloc(packed.nbytes()));
  encoder.add_temporary(packed);
  encoder.dispatch([from = a, to = packed.data<char>()] {
    copy_packed(from, reinterpret_cast<std::byte*>(to));
  });
  return tensor_of(packed);
}

} // namespace zmlx
