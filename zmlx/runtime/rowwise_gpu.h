// zmlx/runtime/rowwise_gpu.h: row kernels for GPUs.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/kernel/lang/print_rows.h"
#include "zmlx/runtime/broadcast.h"
#include "zmlx/runtime/metal_kernel.h"

namespace zmlx {

/// One kernel's CUDA texts, made once for each way of access.
class RowTexts {
 public:
  const std::string* text(const lang::ElementwiseText& kernel, const lang::RowAccess& access);

 private:
  std::mutex mutex_;
  std::map<lang::RowAccess, const std::string*> made_;
};

/// The launch over rows of `shape`, whose last axis is the row; `strides` are along all its axes.
/// Lengths of a class share one compiled kernel. Numbers come behind the arrays, as zeros.
cuda::Kernel rows_cuda(
    const lang::ElementwiseText& kernel,
    RowTexts& texts,
    const Shape& shape,
    const std::vector<Strides>& strides,
    const cuda::Device& device);

/// A Metal kernel's text, and what its launch says.
struct MetalRows {
  msl::Source source;
  MetalCall call;
};

/// The Metal kernel for inputs that have one shape, and numbers; outputs have the given shapes.
MetalRows metal_rows(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    std::vector<mx::Shape> shapes);

/// Its outputs. Lazy.
std::vector<mx::array> rows_metal(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Shape>& shapes,
    mx::StreamOrDevice s);

} // namespace zmlx
