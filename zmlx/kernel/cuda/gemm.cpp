// zmlx/kernel/cuda/gemm.cpp: chooses instantiation, tile height and grid of a prompt's matrix
// products.
#include "zmlx/kernel/cuda/gemm.h"

#include <algorithm>
#include <string>

#include "zmlx/kernel/cuda/dot.h"

namespace zmlx::cuda {
namespace {

// As in gemm.cuh.
constexpr uint32_t threads = 256;
constexpr int64_t tile_width = 128;
constexpr int64_t depth = 64;
constexpr int64_t plain_size = 64;
constexpr size_t tile_row_bytes = depth * 2;

std::string weight_name(Dtype dtype, const cpu::WeightFormat& format) {
  if (!format.bits) {
    return "DenseRuns<" + text_of(dtype) + ">";
  }
  return "CodeRuns<" + text_of(dtype) + ", " + std::to_string(format.bits) + ", " +
      std::to_string(format.group_size) + ", " + std::to_string(static_cast<int>(format.mode)) +
      ">";
}

/// What both kinds of task have in common.
struct Product {
  Dtype dtype;
  cpu::WeightFormat format;
  int64_t rows;
  int64_t n;
  int64_t k;
  bool gated;
  bool grouped;
  int64_t experts;
  int64_t per_row;

  bool tensor_cores() const {
    return dtype != Dtype::f32 && k % 32 == 0;
  }
  int64_t column_tiles(int64_t width) const {
    return ceil_div(n, gated ? width / 2 : width);
  }
  /// At most as many as the device finds: an expert's last tile may hold one row.
  int64_t row_tiles(int64_t height) const {
    return grouped ? rows / height + std::min(experts, rows) : ceil_div(rows, height);
  }
  int64_t height() const {
    if (!tensor_cores()) {
      return plain_size;
    }
    const int64_t usual = grouped ? rows / std::max<int64_t>(experts, 1) : rows;
    return usual > 64 ? 128 : usual > 32 ? 64 : usual > 16 ? 32 : 16;
  }
  /// Parts of k, so that there are blocks for all multiprocessors.
  int64_t parts(const Device& device) const {
    if (!tensor_cores() || grouped || gated) {
      return 1;
    }
    const int64_t blocks = row_tiles(height()) * column_tiles(tile_width);
    const int64_t stages = ceil_div(k, depth);
    const int64_t wanted =
        std::min<int64_t>(2 * device.multiprocessors / std::max<int64_t>(blocks, 1), 8);
    const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(stages / 4, 1));
    return ceil_div(stages, ceil_div(stages, parts));
  }
  size_t shared() const {
    const size_t w_stages = format.bits ? 2 : 3;
    return tensor_cores()
        ? (3 * static_cast<size_t>(height()) + w_stages * static_cast<size_t>(tile_width)) *
            tile_row_bytes
        : 0;
  }
};

void append(
    Kernel& kernel,
    const Product& p,
    const Argument& x,
    const GemmWeight& weight,
    const std::optional<GemmWeight>& up,
    const std::optional<Argument>& bias,
    const std::optional<Argument>& residual,
    const std::optional<Argument>& order,
    const std::optional<Argument>& offsets,
    const Argument& y,
    const Device& device) {
  if (p.rows == 0 || p.n == 0) {
    return;
  }
  const int64_t parts = p.parts(device);
  Argument partial = y;
  if (parts > 1) {
    const size_t at = (kernel.scratch + 255) / 256 * 256;
    kernel.scratch = at + static_cast<size_t>(parts * p.rows * p.n) * sizeof(float);
    partial = scratch(at);
  }
  const GemmWeight& second = up ? *up : weight;
  const int flags = (bias ? 1 : 0) | (residual ? 2 : 0);
  const int64_t height = p.height();
  const std::string shape =
      std::string(p.gated ? "true" : "false") + (p.grouped ? ", true" : ", false");
  const std::string types = text_of(p.dtype) + ", " + weight_name(p.dtype, p.format) + ", ";
  const int64_t blocks =
      p.row_tiles(height) * p.column_tiles(p.tensor_cores() ? tile_width : plain_size);
  // An argument that is not there is never read; x stands in for it.
  kernel.launches.push_back(
      {"gemm.cuh",
       p.tensor_cores() ? "gemm_tiles<" + types + std::to_string(height) + ", " + shape + ">"
                        : "gemm_plain<" + types + shape + ">",
       {static_cast<uint32_t>(blocks), static_cast<uint32_t>(parts), 1},
       {threads, 1, 1},
       p.shared(),
       {x,
        weight.codes,
        weight.scales.value_or(x),
        weight.biases.value_or(x),
        second.codes,
        second.scales.value_or(x),
        second.biases.value_or(x),
        bias.value_or(x),
        residual.value_or(x),
        order.value_or(x),
        offsets.value_or(x),
        y,
        partial,
        i32(p.rows),
        i32(p.n),
        i32(p.k),
        i32(p.experts),
        i32(p.per_row),
        i32((parts > 1 ? 8 : flags) | (order ? 4 : 0))}});
  if (parts > 1) {
    kernel.launches.push_back(
        {"gemm.cuh",
         "gemm_combine<" + text_of(p.dtype) + ">",
         {static_cast<uint32_t>(ceil_div(p.rows * p.n, threads)), 1, 1},
         {threads, 1, 1},
         0,
         {partial,
          bias.value_or(x),
          residual.value_or(x),
          y,
          i32(p.rows),
          i32(p.n),
          i32(parts),
          i32(flags)}});
  }
}

} // namespace

bool gemm_supports(Dtype dtype, cpu::WeightFormat format, int64_t k) {
  return is_floating(dtype) && k > 0 && (!format.bits || k % format.group_size == 0);
}

void append_gemm(Kernel& kernel, const GemmTask& task, const Device& device) {
  append(
      kernel,
      {task.dtype, task.format, task.rows, task.n, task.k, task.up.has_value(), false, 1, 1},
      task.x,
      task.weight,
      task.up,
      task.bias,
      task.residual,
      std::nullopt,
      std::nullopt,
      task.y,
      device);
}

void append_grouped_gemm(Kernel& kernel, const GroupedGemmTask& task, const Device& device) {
  append(
      kernel,
      {task.dtype,
       task.format,
       task.pairs,
       task.n,
       task.k,
       task.up.has_value(),
       true,
       task.experts,
       task.per_row},
      task.x,
      task.weight,
      task.up,
      std::nullopt,
      std::nullopt,
      task.order,
      task.offsets,
      task.y,
      device);
}

} // namespace zmlx::cuda
