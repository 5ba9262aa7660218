// zmlx/kernel/cuda/linear.cpp: which instantiation of linear.cuh, on how many blocks.
#include "zmlx/kernel/cuda/linear.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "zmlx/kernel/cuda/dot.h"
#include "zmlx/kernel/cuda/gemm.h"

namespace zmlx::cuda {

namespace {

constexpr size_t outputs_a_launch = 4;
constexpr int64_t warps = 8;
constexpr int64_t blocks_a_multiprocessor = 2; // by their registers

int flags_of(const Linear& linear) {
  return (linear.has_norm ? 1 : 0) | (linear.has_bias ? 2 : 0) | (linear.has_residual ? 4 : 0) |
      (linear.exact ? 8 : 0) | (linear.has_normal ? 16 : 0);
}

void push_output(std::vector<Argument>& arguments, const LinearOutput& output, int64_t n) {
  arguments.insert(
      arguments.end(),
      {output.codes, output.scales, output.biases, output.bias, output.out, i32(n)});
}

std::string template_text(const Linear& linear) {
  return text_of(linear.dtype) + ", " + text_of(linear.format) + ", ";
}

/// Tiles of 16 outputs in the launch that begins with output `first`.
int64_t tiles_of(const Linear& linear, size_t first) {
  int64_t tiles = 0;
  for (size_t i = first; i < std::min(first + outputs_a_launch, linear.outputs.size()); ++i) {
    tiles += linear.pair && i > first ? 0 : ceil_div(linear.outputs[i].n, 16);
  }
  return tiles;
}

/// Whether every warp of the device has tiles of its own, and more.
bool is_wide(const Linear& linear, int64_t tiles, const Device& device) {
  return !linear.pair && tiles >= 2 * blocks_a_multiprocessor * warps * device.multiprocessors;
}

Launch tensor_core_launch(const Linear& linear, size_t first, Dot dot, const Device& device) {
  const int64_t tiles = tiles_of(linear, first);
  const bool wide = is_wide(linear, tiles, device);
  dot = wide ? dot.over(2 * dot.chunk()) : dot.over(ceil_div(linear.k, warps));
  const int64_t weights = linear.pair ? 2 : 1;
  Launch launch;
  launch.source = "linear.cuh";
  launch.kernel = (wide ? "linear_wide<" : "linear_rows<") + template_text(linear) +
      std::to_string(dot.rows) + ", " + std::to_string(dot.chunks) +
      (wide              ? ">"
           : linear.pair ? ", true>"
                         : ", false>");
  launch.shared = dot.shared(dot.rows, linear.k, weights * warps);
  launch.arguments = {
      linear.x,
      linear.has_norm ? linear.norm : linear.x,
      f32(linear.eps),
      i32(linear.k),
      i32(linear.rows),
      i32(flags_of(linear)),
      linear.has_residual ? linear.residual : linear.x,
      linear.has_normal ? linear.normal : linear.x};
  for (size_t i = 0; i < outputs_a_launch; ++i) {
    const bool valid = first + i < linear.outputs.size();
    auto& output = linear.outputs[valid ? first + i : first];
    push_output(launch.arguments, output, valid ? output.n : 0);
  }
  launch.grid[0] =
      static_cast<uint32_t>(wide ? blocks_a_multiprocessor * device.multiprocessors : tiles);
  launch.grid[1] = static_cast<uint32_t>(ceil_div(linear.rows, dot.rows));
  launch.block[0] = 32 * warps;
  return launch;
}

/// One row: a block 16 elements.
Launch row_launch(const Linear& linear, size_t first, const RowPart& part) {
  const size_t outputs =
      linear.pair ? 1 : std::min(outputs_a_launch, linear.outputs.size() - first);
  Launch launch;
  launch.source = "row.cuh";
  launch.kernel = "row_linear<" + template_text(linear) + part.text() + ", " +
      std::to_string(outputs) + (linear.pair ? ", true, " : ", false, ") +
      std::to_string(flags_of(linear)) + ">";
  launch.shared = part.block_shared(linear.pair ? 2 : 1);
  launch.arguments = {
      linear.x,
      linear.has_norm ? linear.norm : linear.x,
      f32(linear.eps),
      i32(linear.k),
      linear.has_residual ? linear.residual : linear.x,
      linear.has_normal ? linear.normal : linear.x};
  launch.grid[0] = 0;
  for (size_t i = 0; i < outputs_a_launch; ++i) {
    const bool valid = first + i < linear.outputs.size();
    auto& output = linear.outputs[valid ? first + i : first];
    push_output(launch.arguments, output, valid ? output.n : 0);
    launch.grid[0] += static_cast<uint32_t>(i < outputs ? ceil_div(output.n, 16) : 0);
  }
  launch.block[0] = static_cast<uint32_t>(32 * part.shares);
  return launch;
}

Launch any_launch(const Linear& linear, size_t i) {
  auto& output = linear.outputs[i];
  auto& second = linear.outputs[linear.pair ? 1 : i];
  Launch launch;
  launch.source = "linear.cuh";
  launch.kernel = "linear_any<" + template_text(linear) + (linear.pair ? "true>" : "false>");
  launch.arguments = {
      linear.x,
      linear.has_norm ? linear.norm : linear.x,
      f32(linear.eps),
      i32(linear.k),
      i32(flags_of(linear)),
      linear.has_residual ? linear.residual : linear.x,
      linear.has_normal ? linear.normal : linear.x};
  push_output(launch.arguments, output, output.n);
  launch.arguments.insert(launch.arguments.end(), {second.codes, second.scales, second.biases});
  launch.grid[0] = static_cast<uint32_t>(ceil_div(output.n, 8));
  launch.grid[1] = static_cast<uint32_t>(linear.rows);
  launch.block[0] = 256;
  return launch;
}

GemmWeight gemm_weight(const LinearOutput& output) {
  return {output.codes, output.scales, output.biases};
}

void push_prompt(Kernel& kernel, const Linear& linear, const Device& device) {
  Argument x = linear.x;
  if (linear.has_norm) {
    if (linear.has_normal) {
      x = linear.normal;
    } else {
      x = scratch((kernel.scratch + 255) / 256 * 256);
      kernel.scratch =
          x.offset + static_cast<size_t>(linear.rows * linear.k) * size_of(linear.dtype);
    }
    Launch norm;
    norm.source = "rows.cuh";
    norm.kernel = "rms_norm<" + text_of(linear.dtype) + ">";
    norm.grid[0] = static_cast<uint32_t>(linear.rows);
    norm.block[0] = 256;
    norm.arguments = {linear.x, linear.norm, x, f32(linear.eps), i32(linear.k)};
    kernel.launches.push_back(std::move(norm));
  }
  for (size_t i = 0; i < (linear.pair ? 1 : linear.outputs.size()); ++i) {
    auto& output = linear.outputs[i];
    GemmTask task{
        linear.dtype, linear.format, linear.rows, output.n, linear.k, x, gemm_weight(output)};
    if (linear.pair) {
      task.up = gemm_weight(linear.outputs[1]);
    }
    if (linear.has_bias) {
      task.bias = output.bias;
    }
    if (linear.has_residual) {
      task.residual = linear.residual;
    }
    task.y = output.out;
    append_gemm(kernel, task, device);
  }
}

/// How warps share the one row of activations, if the kernels for one row take it.
std::optional<RowPart> row_part(const Linear& linear, const Device& device) {
  int64_t unit = 0; // that all outputs are multiples of
  for (auto& output : linear.outputs) {
    unit = std::gcd(unit, output.n);
  }
  const auto part = RowPart::of(linear.format, linear.k, unit, RowPart::warps);
  const bool takes = linear.rows == 1 && !linear.exact &&
      Dot{linear.format, 1}.takes(linear.dtype, linear.k) && part.fits() &&
      part.block_shared(linear.pair ? 2 : 1) <= device.shared_bytes;
  return takes ? std::optional(part) : std::nullopt;
}

} // namespace

LinearOutput linear_output(WeightFormat format, int at, Argument out, int64_t n) {
  std::vector<Argument> arrays;
  push_weight(arrays, format, at);
  return {arrays[0], arrays[1], arrays[2], arrays[0], out, n};
}

void push_linear(Kernel& kernel, const Linear& linear, const Device& device) {
  if (linear.rows > few_rows && gemm_supports(linear.dtype, linear.format, linear.k)) {
    return push_prompt(kernel, linear, device);
  }
  const int64_t parts = (linear.pair ? 2 : 1) * warps;
  auto fits = [&](const Dot& dot) { // however many chunks
    return dot.shared(dot.rows, linear.k + 8 * dot.chunk(), parts) <= device.shared_bytes;
  };
  Dot dot{linear.format, few_rows};
  while (dot.rows > 1 && (dot.rows / 2 >= linear.rows || !fits(dot))) {
    dot.rows /= 2;
  }
  const bool on_tensor_cores = dot.takes(linear.dtype, linear.k) && fits(dot);
  const auto part = row_part(linear, device);
  const auto step = static_cast<size_t>(linear.pair ? 2 : on_tensor_cores ? outputs_a_launch : 1);
  for (size_t i = 0; i < linear.outputs.size(); i += step) {
    kernel.launches.push_back(
        part && !is_wide(linear, tiles_of(linear, i), device) ? row_launch(linear, i, *part)
            : on_tensor_cores ? tensor_core_launch(linear, i, dot, device)
                              : any_launch(linear, i));
  }
}

} // namespace zmlx::cuda
