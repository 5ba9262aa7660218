// zmlx/runtime/elementwise_gpu.h: elementwise kernels for GPUs: one for each way of access.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "mlx/array.h"
#include "mlx/utils.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/kernel/lang/print.h"
#include "zmlx/runtime/broadcast.h"

namespace zmlx {

namespace mx = mlx::core;

/// One kernel's CUDA texts, made once for each way of access.
class CudaTexts {
 public:
  const std::string*
  text(const lang::ElementwiseText& kernel, const std::vector<lang::Access>& access, int rank);

 private:
  std::mutex mutex_;
  std::map<std::pair<std::vector<lang::Access>, int>, const std::string*> made_;
};

/// The launch over `shape`; equal ways of access give equal texts, whatever the extents.
cuda::Kernel elementwise_cuda(
    const lang::ElementwiseText& kernel,
    CudaTexts& texts,
    const Shape& shape,
    const std::vector<Strides>& strides,
    const cuda::Device& device);

/// Outputs of a Metal kernel for inputs that have the outputs' shape. Lazy.
std::vector<mx::array> elementwise_metal(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    const mx::Shape& shape,
    mx::StreamOrDevice s);

} // namespace zmlx
