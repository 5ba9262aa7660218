// zmlx/kernel/cuda/rope.cpp: which instantiations of rope.cuh, on how many blocks.
#include "zmlx/kernel/cuda/rope.h"

#include "zmlx/kernel/cuda/weights.h"

namespace zmlx::cuda {

namespace {

constexpr int64_t rows_a_block = 4;
constexpr int64_t widest = 512;

uint32_t blocks_of(int64_t rows) {
  return static_cast<uint32_t>((rows + rows_a_block - 1) / rows_a_block);
}

std::string flag(bool value) {
  return value ? ", true" : ", false";
}

/// Pairs of a head's elements that a lane holds.
std::string pairs_a_lane(int64_t width) {
  return ", " + std::to_string((width + 63) / 64) + ">";
}

Launch launch_of(std::string kernel, int64_t rows) {
  Launch launch;
  launch.source = "rope.cuh";
  launch.kernel = std::move(kernel);
  launch.grid[0] = blocks_of(rows);
  launch.block[0] = 32 * rows_a_block;
  return launch;
}

} // namespace

Kernel rope(Dtype dtype, const Shape& x, bool own_offsets, const cpu::Rope& rope) {
  if (x.size() == 0 || x[-1] > widest) {
    return {};
  }
  auto launch = launch_of(
      "rope_rows<" + text_of(dtype) + flag(rope.traditional) + flag(rope.exact) +
          pairs_a_lane(x[-1]),
      x.rows());
  launch.arguments = {
      in(0),
      in(1),
      in(2),
      out(0),
      i32(x.rows()),
      i32(x[1]),
      i32(x[2]),
      i32(x[3]),
      i32(rope.dims),
      i32(own_offsets),
      f32(rope.scale)};
  return {{launch}, 0};
}

Kernel rope_kv_update(const RopeKvUpdate& op) {
  const int64_t rows = op.batch * op.tokens * (op.q_heads + 2 * op.kv_heads);
  if (rows == 0 || op.width > widest) {
    return {};
  }
  auto launch = launch_of(
      "rope_kv_update_rows<" + text_of(op.dtype) + flag(op.rope.traditional) + flag(op.rope.exact) +
          flag(op.norm) + flag(op.padded) + pairs_a_lane(op.width),
      rows);
  const int f = op.frequencies;
  launch.arguments = {
      in(0),
      in(1),
      in(2),
      in(op.norm ? 3 : 0),
      in(op.norm ? 4 : 0),
      in(f),
      in(f + 1),
      in(op.padded ? f + 2 : f + 1),
      out(0),
      out(1),
      out(2),
      out_dim(1, 2),
      i32(rows),
      i32(op.tokens),
      i32(op.q_heads),
      i32(op.kv_heads),
      i32(op.width),
      i32(op.value_width),
      i32(op.rope.dims),
      f32(op.rope.scale),
      f32(op.eps)};
  return {{launch}, 0};
}

Kernel kv_update(const Shape& x, size_t element_bytes) {
  const auto bytes = x[-1] * static_cast<int64_t>(element_bytes);
  if (x.size() == 0) {
    return {};
  }
  const bool in_words = bytes % 4 == 0;
  auto launch =
      launch_of(std::string("kv_update_rows<") + (in_words ? "uint32_t>" : "uint8_t>"), x.rows());
  launch.arguments = {
      in(1),
      in(2),
      out(0),
      out_dim(0, 2),
      i32(x.rows()),
      i32(x[2]),
      i32(in_words ? bytes / 4 : bytes)};
  return {{launch}, 0};
}

Kernel causal_mask(const Shape& shape, int64_t window, bool padded) {
  if (shape.size() == 0) {
    return {};
  }
  Launch launch;
  launch.source = "rope.cuh";
  launch.kernel = std::string("causal_mask_rows<") + (padded ? "true>" : "false>");
  launch.grid = {
      static_cast<uint32_t>(shape.rows()), static_cast<uint32_t>((shape[-1] + 255) / 256), 1};
  launch.block[0] = 256;
  launch.arguments = {
      in(0), in(padded ? 1 : 0), out(0), i32(shape[-2]), i32(shape[-1]), i32(window)};
  return {{launch}, 0};
}

} // namespace zmlx::cuda
