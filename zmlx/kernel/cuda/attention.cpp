// zmlx/kernel/cuda/attention.cpp: which attention kernel, on how many blocks.
#include "zmlx/kernel/cuda/attention.h"

#include <algorithm>
#include <bit>

#include "zmlx/kernel/cuda/weights.h"

namespace zmlx::cuda {

namespace {

// As in attention_split.cuh and attention_prompt.cuh.
constexpr int64_t split_warps = 4;
constexpr int64_t split_stages = 3;
constexpr int64_t most_splits = 64;
constexpr int64_t prompt_warps = 4;
constexpr int64_t prompt_keys = 64;
constexpr int64_t few_tokens = 16;

uint32_t count(int64_t n) {
  return static_cast<uint32_t>(n);
}

struct Task {
  const cpu::Attention& op;
  Dtype dtype;
  const Device& device;

  bool causal() const {
    return op.mask == cpu::MaskKind::causal;
  }
  int64_t rows() const { // that share a KV head
    return op.q_heads / op.kv_heads * op.tokens;
  }
  int64_t heads() const {
    return op.batch * op.kv_heads;
  }
  std::string types() const {
    return text_of(dtype) + ", " + std::to_string(op.width) + ", " + std::to_string(op.value_width);
  }
  bool fits_tensor_cores() const {
    auto fits = [](int64_t width) { return width % 16 == 0 && width >= 32 && width <= 256; };
    return dtype != Dtype::f32 && op.mask != cpu::MaskKind::array && fits(op.width) &&
        fits(op.value_width);
  }
  Argument offset() const {
    return in(causal() ? 3 : 0);
  }
  Argument positions() const {
    return in(op.padded ? 4 : 0);
  }
  /// tokens, heads and what is visible, as all kernels take them.
  std::vector<Argument> numbers() const {
    return {
        i32(op.tokens),
        i32(op.q_heads),
        i32(op.kv_heads),
        i32(op.heads_last),
        i32(causal()),
        i32(op.padded),
        i32(op.window)};
  }
};

void append(std::vector<Argument>& to, std::vector<Argument> more) {
  to.insert(to.end(), more.begin(), more.end());
}

Kernel split(const Task& task) {
  const auto& op = task.op;
  const int64_t row_tiles = (task.rows() + 15) / 16;
  const int64_t parts = task.heads() * row_tiles;
  const int64_t splits = parts > max_counters
      ? 1
      : std::clamp<int64_t>(task.device.multiprocessors / parts, 1, most_splits);
  Launch launch;
  launch.source = "attention_split.cuh";
  launch.kernel = "attention_split<" + task.types() + ">";
  launch.grid = {count(splits), count(row_tiles), count(task.heads())};
  launch.block[0] = 32 * split_warps;
  launch.shared =
      static_cast<size_t>(split_warps * split_stages * 16 * (op.width + op.value_width + 16) * 2);
  launch.arguments = {
      in(0),
      in(1),
      in(2),
      task.offset(),
      task.positions(),
      out(0),
      scratch(),
      counter(),
      in_dim(1, 2)};
  append(launch.arguments, task.numbers());
  launch.arguments.push_back(f32(op.scale));
  if (launch.shared > task.device.shared_bytes) {
    return {};
  }
  const auto part_bytes = static_cast<size_t>(16 * (op.value_width + 2)) * sizeof(float);
  return {{launch}, splits == 1 ? 0 : static_cast<size_t>(parts * splits) * part_bytes};
}

Kernel prompt(const Task& task) {
  const auto& op = task.op;
  // Two tiles of rows a warp share what it reads, while their sums fit in registers.
  const int64_t row_tiles = op.value_width <= 128 && task.rows() > 64 ? 2 : 1;
  const int64_t block_rows = 16 * row_tiles * prompt_warps;
  Launch launch;
  launch.source = "attention_prompt.cuh";
  launch.kernel = "attention_prompt<" + task.types() + ", " + std::to_string(row_tiles) + ">";
  launch.grid = {count((task.rows() + block_rows - 1) / block_rows), count(task.heads()), 1};
  launch.block[0] = 32 * prompt_warps;
  launch.shared = static_cast<size_t>(
      2 * (block_rows * (op.width + 8) + prompt_keys * (op.width + op.value_width + 16)));
  launch.arguments = {in(0), in(1), in(2), task.offset(), task.positions(), out(0), in_dim(1, 2)};
  append(launch.arguments, task.numbers());
  launch.arguments.push_back(f32(op.scale));
  return launch.shared <= task.device.shared_bytes ? Kernel{{launch}, 0} : Kernel{};
}

Kernel any(const Task& task, const Type* mask) {
  const auto& op = task.op;
  const auto per_lane = static_cast<int64_t>(
      std::bit_ceil(static_cast<uint64_t>((std::max(op.width, op.value_width) + 31) / 32)));
  const bool masked = op.mask == cpu::MaskKind::array;
  if (masked && mask->shape.rank() == 0) {
    return {};
  }
  auto extent = [&](int axis) { // of the mask, counted from the last
    return masked && mask->shape.rank() >= axis ? mask->shape[-axis] : 1;
  };
  const int64_t tokens = extent(2);
  const int64_t heads = extent(3);
  Launch launch;
  launch.source = "attention.cuh";
  launch.kernel = "attention_rows<" + text_of(task.dtype) + ", " + std::to_string(per_lane) + ", " +
      (!masked                             ? "mask_none>"
           : mask->dtype == Dtype::boolean ? "mask_bool>"
                                           : "mask_added>");
  launch.grid[0] = count(task.heads() * task.rows());
  launch.block[0] = 256;
  launch.shared = static_cast<size_t>(8 * (32 * per_lane + 2)) * 4;
  launch.arguments = {
      in(0),
      in(1),
      in(2),
      task.offset(),
      task.positions(),
      in(masked ? 3 : 0),
      out(0),
      in_dim(1, 2),
      masked ? in_dim(3, mask->shape.rank() - 1) : in_dim(1, 2)};
  append(launch.arguments, task.numbers());
  append(
      launch.arguments,
      {i32(extent(4) > 1 ? heads * tokens : 0),
       i32(heads > 1 ? tokens : 0),
       i32(tokens > 1 ? 1 : 0),
       i32(op.width),
       i32(op.value_width),
       f32(op.scale)});
  return {{launch}, 0};
}

} // namespace

Kernel attention(const cpu::Attention& op, Dtype dtype, const Type* mask, const Device& device) {
  const Task task{op, dtype, device};
  if (task.heads() * task.rows() == 0) {
    return {};
  }
  Kernel kernel;
  if (task.fits_tensor_cores()) {
    kernel = op.tokens <= few_tokens ? split(task) : prompt(task);
  }
  return kernel ? kernel : any(task, mask);
}

} // namespace zmlx::cuda
