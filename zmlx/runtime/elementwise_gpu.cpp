// zmlx/runtime/elementwise_gpu.cpp: joins axes, chooses the text, and fills in its arguments.
#include "zmlx/runtime/elementwise_gpu.h"

#include <algorithm>
#include <limits>

#include "mlx/fast.h"
#include "zmlx/graph/capture.h"

namespace zmlx {
namespace {

constexpr int64_t threads = 256;
constexpr int64_t elements_a_thread = 8;
constexpr int64_t blocks_a_multiprocessor = 16;

lang::Access access_of(const Strides& strides, const std::vector<int64_t>& extents) {
  bool constant = true;
  bool contiguous = true;
  int64_t next = 1;
  for (size_t a = extents.size(); a-- > 0;) {
    constant = constant && strides[a] == 0;
    contiguous = contiguous && strides[a] == next;
    next *= extents[a];
  }
  return contiguous && !extents.empty() ? lang::Access::contiguous
      : constant                        ? lang::Access::constant
                                        : lang::Access::strided;
}

} // namespace

const std::string* CudaTexts::text(
    const lang::ElementwiseText& kernel,
    const std::vector<lang::Access>& access,
    int rank) {
  std::lock_guard lock(mutex_);
  auto& text = made_[{access, rank}];
  if (!text) {
    auto made = lang::cuda_text(kernel, access, rank);
    text = cuda::shared_text(made.prelude + made.kernel);
  }
  return text;
}

cuda::Kernel elementwise_cuda(
    const lang::ElementwiseText& kernel,
    CudaTexts& texts,
    const Shape& shape,
    const std::vector<Strides>& strides,
    const cuda::Device& device) {
  auto axes = joined(shape, strides);
  std::vector<lang::Access> access;
  for (auto& input : axes.strides) {
    access.push_back(access_of(input, axes.extents));
  }
  // Where no input is strided, how the outputs' axes are cut does not matter.
  bool strided = std::find(access.begin(), access.end(), lang::Access::strided) != access.end();
  int rank = strided ? static_cast<int>(axes.extents.size()) : 1;
  int64_t size = shape.size();
  // The loop's counter passes the end by a step at most.
  bool wide = size > std::numeric_limits<int32_t>::max();

  cuda::Launch launch;
  launch.source = "base.cuh";
  launch.generated = texts.text(kernel, access, rank);
  launch.kernel = wide ? "zmlx_run<uint64_t>" : "zmlx_run<uint32_t>";
  int64_t a_block = threads * elements_a_thread;
  launch.grid[0] = static_cast<uint32_t>(std::clamp<int64_t>(
      (size + a_block - 1) / a_block, 1, blocks_a_multiprocessor * device.multiprocessors));
  launch.block[0] = threads;
  for (size_t i = 0; i < strides.size(); ++i) {
    launch.arguments.push_back(cuda::in(static_cast<int>(i)));
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    launch.arguments.push_back(cuda::out(static_cast<int>(i)));
  }
  launch.arguments.push_back(cuda::extent(size));
  for (size_t a = 1; strided && a < axes.extents.size(); ++a) {
    launch.arguments.push_back(cuda::extent(axes.extents[a]));
  }
  for (size_t i = 0; i < strides.size(); ++i) {
    for (size_t a = 0; access[i] == lang::Access::strided && a < axes.extents.size(); ++a) {
      launch.arguments.push_back(cuda::extent(axes.strides[i][a]));
    }
  }
  cuda::Kernel made;
  made.launches.push_back(std::move(launch));
  made.strided = true;
  return made;
}

std::vector<mx::array> elementwise_metal(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    const mx::Shape& shape,
    mx::StreamOrDevice s) {
  std::vector<std::string> in_names;
  std::vector<std::string> out_names;
  std::vector<mx::Dtype> dtypes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    in_names.push_back("in" + std::to_string(i));
  }
  for (auto dtype : kernel.out) {
    out_names.push_back("out" + std::to_string(dtypes.size()));
    dtypes.push_back(mlx_dtype(dtype));
  }
  auto text = lang::metal_text(kernel);
  auto run = mx::fast::metal_kernel(
      "zmlx_elementwise_" + std::to_string(std::hash<std::string>{}(text.kernel)),
      in_names,
      out_names,
      text.kernel,
      text.prelude,
      false);
  int size = 1;
  for (auto extent : shape) {
    size *= extent;
  }
  return run(
      inputs,
      std::vector<mx::Shape>(dtypes.size(), shape),
      dtypes,
      {size, 1, 1},
      {std::min(size, 256), 1, 1},
      {},
      std::nullopt,
      false,
      s);
}

} // namespace zmlx
