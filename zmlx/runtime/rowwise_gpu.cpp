// zmlx/runtime/rowwise_gpu.cpp: how many threads share a row, and the launch's arguments.
#include "zmlx/runtime/rowwise_gpu.h"

#include <algorithm>
#include <tuple>

#include "mlx/fast.h"
#include "zmlx/graph/capture.h"

namespace zmlx {
namespace {

constexpr int rows_a_block = 8; // where a row is a warp's
constexpr int most_registers = 64; // of a thread, for what it keeps of its elements

struct Share {
  int threads; // of a row
  int items; // elements that each holds; 0: not in registers
};

/// The fewest threads that hold the row; more where rows alone do not fill the device.
Share share(int64_t n, int64_t rows, int values, const cuda::Device& device) {
  bool few = rows < 2 * static_cast<int64_t>(rows_a_block) * device.multiprocessors;
  for (int threads : {32, 256, 1024}) {
    int items = 1;
    while (static_cast<int64_t>(items) * threads < n) {
      items *= 2;
    }
    bool waits = few && threads < 1024 && items > 4;
    if (!waits && items <= 32 && items * std::max(values, 1) <= most_registers) {
      return {threads, items};
    }
  }
  return {1024, 0};
}

} // namespace

const std::string* RowTexts::text(
    const lang::ElementwiseText& kernel,
    const lang::RowAccess& access) {
  std::lock_guard lock(mutex_);
  auto& text = made_[access];
  if (!text) {
    auto made = lang::cuda_rows_text(kernel, access);
    text = cuda::shared_text(made.prelude + made.kernel);
  }
  return text;
}

cuda::Kernel rows_cuda(
    const lang::ElementwiseText& kernel,
    RowTexts& texts,
    const Shape& shape,
    const std::vector<Strides>& strides,
    const cuda::Device& device) {
  int64_t n = shape[-1];
  int64_t rows = shape.rows();
  std::vector<Strides> leading = strides;
  lang::RowAccess access;
  for (auto& of : leading) {
    access.strided.push_back(n > 1 && of.back() != 1);
    of.pop_back();
  }
  for (auto& step : kernel.program.steps) {
    if (step.kind == lang::Kind::input && step.row) {
      access.strided[static_cast<size_t>(step.input)] = false; // one value
    }
  }
  auto axes = joined(Shape(shape.begin(), shape.end() - 1), leading);
  auto how = share(n, rows, lang::kept_values(kernel.program), device);
  access.rank = static_cast<int>(axes.extents.size());
  access.registers = how.items > 0;

  cuda::Launch launch;
  launch.source = "base.cuh";
  launch.generated = texts.text(kernel, access);
  launch.kernel =
      "zmlx_rows<" + std::to_string(how.threads) + ", " + std::to_string(how.items) + ">";
  bool warps = how.threads == 32;
  launch.grid[0] = static_cast<uint32_t>(warps ? (rows + rows_a_block - 1) / rows_a_block : rows);
  launch.block[0] = static_cast<uint32_t>(warps ? 32 * rows_a_block : how.threads);
  size_t arrays = strides.size() - kernel.numbers;
  for (size_t i = 0; i < strides.size(); ++i) {
    launch.arguments.push_back(i < arrays ? cuda::in(static_cast<int>(i)) : cuda::f32(0));
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    launch.arguments.push_back(cuda::out(static_cast<int>(i)));
  }
  launch.arguments.push_back(cuda::extent(rows));
  launch.arguments.push_back(cuda::extent(n));
  for (size_t a = 1; a < axes.extents.size(); ++a) {
    launch.arguments.push_back(cuda::extent(axes.extents[a]));
  }
  for (size_t i = 0; i < arrays; ++i) {
    for (auto stride : axes.strides[i]) {
      launch.arguments.push_back(cuda::extent(stride));
    }
    if (access.strided[i]) {
      launch.arguments.push_back(cuda::extent(strides[i].back()));
    }
  }
  cuda::Kernel made;
  made.launches.push_back(std::move(launch));
  made.strided = true;
  return made;
}

MetalRows metal_rows(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    std::vector<mx::Shape> shapes) {
  MetalRows made;
  auto& [source, call] = made;
  for (size_t i = 0; i < inputs.size(); ++i) {
    source.inputs.push_back("in" + std::to_string(i));
  }
  for (auto dtype : kernel.out) {
    source.outputs.push_back("out" + std::to_string(source.outputs.size()));
    call.output_dtypes.push_back(mlx_dtype(dtype));
  }
  auto text = lang::metal_rows_text(kernel);
  source.name = "zmlx_rows_" + std::to_string(std::hash<std::string>{}(text.kernel));
  source.body = std::move(text.kernel);
  source.header = std::move(text.prelude);
  auto& shape = inputs[0].shape(); // the common one
  int threads = std::clamp((shape.back() + 31) / 32 * 32, 32, 256);
  auto rows = static_cast<int>(Shape(shape.begin(), shape.end()).rows());
  call.output_shapes = std::move(shapes);
  call.grid = {rows * threads, 1, 1};
  call.threadgroup = {threads, 1, 1};
  return made;
}

std::vector<mx::array> rows_metal(
    const lang::ElementwiseText& kernel,
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Shape>& shapes,
    mx::StreamOrDevice s) {
  auto [source, call] = metal_rows(kernel, inputs, shapes);
  auto run = mx::fast::metal_kernel(
      source.name, source.inputs, source.outputs, source.body, source.header, false);
  auto of = [](const std::array<int, 3>& x) { return std::tuple(x[0], x[1], x[2]); };
  return run(
      inputs,
      call.output_shapes,
      call.output_dtypes,
      of(call.grid),
      of(call.threadgroup),
      {},
      std::nullopt,
      false,
      s);
}

} // namespace zmlx
