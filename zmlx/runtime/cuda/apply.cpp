// zmlx/runtime/cuda/apply.cpp: parameters from arrays, launches through MLX's encoder.
#include "zmlx/runtime/cuda/apply.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "mlx/allocator.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/cuda/functions.h"
#include "zmlx/runtime/cuda/memory.h"
#include "zmlx/runtime/error.h"

namespace zmlx::cuda {
namespace {

const cuda::Launch copy_bytes{"copy.cuh", "copy_chunks<uint8_t>", {}, {}, 0, {}};
const cuda::Launch clear_counters{"copy.cuh", "clear_words<int32_t>", {}, {}, 0, {}};

bool counts(const Kernel& kernel) {
  for (auto& launch : kernel.launches) {
    for (auto& a : launch.arguments) {
      if (a.kind == Argument::Kind::counter) {
        return true;
      }
    }
  }
  return false;
}

/// One launch's parameters in memory: each is one or two words.
class Parameters {
 public:
  void pair(uint64_t first) {
    add({first, 0});
  }
  void word(const void* value) {
    std::array<uint64_t, 2> words{};
    std::memcpy(words.data(), value, 4);
    add(words);
  }
  void** data() {
    return pointers_.data();
  }

 private:
  void add(const std::array<uint64_t, 2>& words) {
    pointers_.push_back(words_.emplace_back(words).data());
  }

  std::deque<std::array<uint64_t, 2>> words_; // where each stays
  std::vector<void*> pointers_;
};

Parameters parameters(
    const Launch& launch,
    const Arrays& inputs,
    const Arrays& outputs,
    Address scratch,
    Address counters) {
  Parameters list;
  for (auto& a : launch.arguments) {
    auto index = static_cast<size_t>(a.index);
    switch (a.kind) {
      case Argument::Kind::in:
        list.pair(address_of(inputs[index]) + a.offset);
        break;
      case Argument::Kind::out:
        list.pair(address_of(outputs[index]) + a.offset);
        break;
      case Argument::Kind::scratch:
        list.pair(scratch + a.offset);
        break;
      case Argument::Kind::counter:
        list.pair(counters + index * sizeof(int32_t));
        break;
      case Argument::Kind::in_dim:
        list.pair(static_cast<uint64_t>(inputs[index].shape(a.axis)));
        break;
      case Argument::Kind::out_dim:
        list.pair(static_cast<uint64_t>(outputs[index].shape(a.axis)));
        break;
      case Argument::Kind::extent:
        list.pair(a.offset);
        break;
      case Argument::Kind::i32:
        list.word(&a.integer);
        break;
      case Argument::Kind::f32:
        list.word(&a.real);
        break;
    }
  }
  return list;
}

} // namespace

void apply(
    const Op& op,
    const Kernel& kernel,
    const Arrays& inputs,
    Arrays& outputs,
    const mx::Stream& mlx_stream) {
  auto& gpu = cuda::gpu(mlx_stream.device.index);
  auto stream = stream_of(mlx_stream);
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!kernel.strided && !inputs[i].flags().row_contiguous && inputs[i].size() > 1) {
      fail(
          op.name.c_str(),
          "input ",
          i,
          " must be row-contiguous but is a view, ",
          to_string(type_of(inputs[i])),
          "; use apply(), which packs it.");
    }
  }
  std::vector<const Launch*> launches{&copy_bytes, &clear_counters};
  for (auto& launch : kernel.launches) {
    launches.push_back(&launch);
  }
  auto found = functions(gpu, launches);

  std::vector<const mx::array*> overwrites(outputs.size(), nullptr);
  for (auto [output, input] : op.in_place) {
    overwrites[static_cast<size_t>(output)] = &inputs[in_place_input(input, inputs.size())];
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto& out = outputs[i];
    auto* from = overwrites[i];
    if (from && from->is_donatable() && from->shape() == out.shape()) {
      out.copy_shared_buffer(*from);
      continue;
    }
    out.set_data(allocate(gpu, stream, out.nbytes()));
    if (from && from->nbytes() > 0) {
      Parameters list;
      list.pair(address_of(*from));
      list.pair(address_of(out));
      list.pair(from->nbytes());
      list.pair(from->nbytes());
      auto blocks = std::clamp<size_t>(from->nbytes() / 4096, 1, 256);
      add_input(mlx_stream, *from);
      add_output(mlx_stream, out);
      add_kernel(
          mlx_stream, found[0], {1, static_cast<uint32_t>(blocks), 1}, {256, 1, 1}, 0, list.data());
    }
  }
  // Counters are the call's own, as MLX may run calls side by side.
  const size_t counters_at = (kernel.scratch + 15) / 16 * 16;
  const size_t bytes = counters_at + (counts(kernel) ? max_counters * sizeof(int32_t) : 0);
  mx::array scratch({static_cast<int>(bytes)}, mx::uint8, nullptr, {});
  scratch.set_data(allocate(gpu, stream, bytes));
  const Address counters = address_of(scratch) + counters_at;
  if (counts(kernel)) {
    Parameters list;
    list.pair(counters);
    list.pair(max_counters);
    add_output(mlx_stream, scratch);
    add_kernel(mlx_stream, found[1], {1, 1, 1}, {256, 1, 1}, 0, list.data());
  }
  for (size_t i = 0; i < kernel.launches.size(); ++i) {
    auto& launch = kernel.launches[i];
    for (auto& a : inputs) {
      add_input(mlx_stream, a);
    }
    // Outputs and scratch put the launches in order.
    for (auto& a : outputs) {
      add_output(mlx_stream, a);
    }
    add_output(mlx_stream, scratch);
    auto list = parameters(launch, inputs, outputs, address_of(scratch), counters);
    add_kernel(mlx_stream, found[i + 2], launch.grid, launch.block, launch.shared, list.data());
  }
  on_completion(mlx_stream, [data = scratch.data_shared_ptr()] {});
}

} // namespace zmlx::cuda
