// zmlx/kernel/cuda/linear.cpp: which instantiation of linear.cuh, on how many blocks.
#include "zmlx/kernel/cuda/linear.h"

#include <algorithm>

namespace zmlx::cuda {

namespace {

constexpr int64_t outputs_a_launch = 4;
constexpr int64_t warps = 8;

int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Dot's numbers in dot.cuh.
struct DotShape {
  int64_t rows;
  int64_t step;

  DotShape(int64_t rows, WeightFormat format)
      : rows(rows), step((rows <= 4 ? 2 : 1) * 4 * 128 / (format.bits ? format.bits : 16)) {}

  /// rows_layout in dot.cuh.
  size_t shared(int64_t k, WeightFormat format, int64_t parts) const {
    const int64_t padded = ceil_div(k, step) * step;
    const int64_t sum_stride = (format.has_biases() ? padded / format.group_size : 1) + 1;
    return static_cast<size_t>(
        rows * (padded + 8) * 2 + ceil_div(rows * sum_stride * 4, 16) * 16 +
        parts * warps * 16 * rows * 4);
  }
};

/// Whether lanes can read 16 bytes of codes at once, all of one group.
bool fits_tensor_cores(const Linear& linear) {
  if (linear.dtype == Dtype::f32) {
    return false;
  }
  const auto& f = linear.format;
  if (f.bits == 0) {
    return linear.k % 8 == 0;
  }
  return (f.bits == 4 || f.bits == 8) && f.mode != cpu::Quantisation::nvfp4 &&
      linear.k * f.bits % 128 == 0;
}

int flags_of(const Linear& linear) {
  return (linear.has_norm ? 1 : 0) | (linear.has_bias ? 2 : 0) | (linear.has_residual ? 4 : 0) |
      (linear.exact ? 8 : 0);
}

void push_output(std::vector<Argument>& arguments, const LinearOutput& output, int64_t n) {
  arguments.insert(
      arguments.end(),
      {output.codes, output.scales, output.biases, output.bias, output.out, i32(n)});
}

std::string template_text(const Linear& linear) {
  return text_of(linear.dtype) + ", " + text_of(linear.format) + ", ";
}

Launch
tensor_core_launch(const Linear& linear, size_t first, DotShape shape, const Device& device) {
  const int64_t weights = linear.pair ? 2 : 1;
  Launch launch;
  launch.source = "linear.cuh";
  launch.kernel = "linear_rows<" + template_text(linear) + std::to_string(shape.rows) +
      (linear.pair ? ", true>" : ", false>");
  launch.shared = shape.shared(linear.k, linear.format, 2 * weights);
  launch.arguments = {
      linear.x,
      linear.has_norm ? linear.norm : linear.x,
      f32(linear.eps),
      i32(linear.k),
      i32(linear.rows),
      i32(flags_of(linear)),
      linear.has_residual ? linear.residual : linear.x};
  int64_t tiles = 0;
  for (size_t i = 0; i < outputs_a_launch; ++i) {
    const bool valid = first + i < linear.outputs.size();
    auto& output = linear.outputs[valid ? first + i : first];
    push_output(launch.arguments, output, valid ? output.n : 0);
    tiles += valid && !(linear.pair && i) ? ceil_div(output.n, 16) : 0;
  }
  // Two blocks fit on a multiprocessor, by their registers.
  launch.grid[0] = static_cast<uint32_t>(std::min<int64_t>(tiles, 2 * device.multiprocessors));
  launch.grid[1] = static_cast<uint32_t>(ceil_div(linear.rows, shape.rows));
  launch.block[0] = 32 * warps;
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
      linear.has_residual ? linear.residual : linear.x};
  push_output(launch.arguments, output, output.n);
  launch.arguments.insert(launch.arguments.end(), {second.codes, second.scales, second.biases});
  launch.grid[0] = static_cast<uint32_t>(ceil_div(output.n, 8));
  launch.grid[1] = static_cast<uint32_t>(linear.rows);
  launch.block[0] = 256;
  return launch;
}

} // namespace

LinearOutput linear_output(WeightFormat format, int at, Argument out, int64_t n) {
  std::vector<Argument> arrays;
  push_weight(arrays, format, at);
  return {arrays[0], arrays[1], arrays[2], arrays[0], out, n};
}

void push_linear(std::vector<Launch>& launches, const Linear& linear, const Device& device) {
  const int64_t weights = linear.pair ? 2 : 1;
  int64_t rows = 16;
  while (rows > 1 &&
         (rows / 2 >= linear.rows ||
          DotShape(rows, linear.format).shared(linear.k, linear.format, 2 * weights) >
              device.shared_bytes)) {
    rows /= 2;
  }
  const DotShape shape(rows, linear.format);
  const bool fits = fits_tensor_cores(linear) &&
      shape.shared(linear.k, linear.format, 2 * weights) <= device.shared_bytes;
  const auto step = static_cast<size_t>(linear.pair ? 2 : fits ? outputs_a_launch : 1);
  for (size_t i = 0; i < linear.outputs.size(); i += step) {
    launches.push_back(fits ? tensor_core_launch(linear, i, shape, device) : any_launch(linear, i));
  }
}

} // namespace zmlx::cuda
