// zmlx/runtime/cuda/apply.cpp: parameters from arrays, launches through MLX's encoder.
#include "zmlx/runtime/cuda/apply.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <optional>

#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/cuda/functions.h"
#include "zmlx/runtime/cuda/memory.h"

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
  explicit Parameters(size_t count) {
    words_.reserve(count); // they stay where they are
    pointers_.reserve(count);
  }
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

  std::vector<std::array<uint64_t, 2>> words_;
  std::vector<void*> pointers_;
};

Parameters parameters(
    const Launch& launch,
    const std::vector<const mx::array*>& inputs,
    const Arrays& outputs,
    Address scratch,
    Address counters) {
  Parameters list(launch.arguments.size());
  for (auto& a : launch.arguments) {
    auto index = static_cast<size_t>(a.index);
    switch (a.kind) {
      case Argument::Kind::in:
        list.pair(address_of(*inputs[index]) + a.offset);
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
        list.pair(static_cast<uint64_t>(inputs[index]->shape(a.axis)));
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

/// A view's elements in whole rows of memory of their own.
mx::array whole(const mx::array& view, const mx::Stream& stream) {
  auto out = mx::contiguous(view, false, stream);
  Arrays outputs{out};
  out.primitive().eval_gpu({view}, outputs);
  return out;
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
  std::deque<mx::array> packed;
  std::vector<const mx::array*> from; // inputs as the launches take them
  for (auto& a : inputs) {
    bool is_whole = kernel.strided || a.flags().row_contiguous || a.size() <= 1;
    from.push_back(is_whole ? &a : &packed.emplace_back(whole(a, mlx_stream)));
  }
  const bool has_counters = counts(kernel);
  std::vector<const Launch*> launches;
  for (auto& launch : kernel.launches) {
    launches.push_back(&launch);
  }
  if (has_counters) {
    launches.push_back(&clear_counters);
  }
  if (!op.in_place.empty()) {
    launches.push_back(&copy_bytes);
  }
  const auto found = functions(gpu, launches);

  std::vector<const mx::array*> overwrites(outputs.size(), nullptr);
  for (auto [output, input] : op.in_place) {
    overwrites[static_cast<size_t>(output)] = from[in_place_input(input, inputs.size())];
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto& out = outputs[i];
    auto* old = overwrites[i];
    if (old && old->is_donatable() && old->shape() == out.shape()) {
      out.copy_shared_buffer(*old);
      continue;
    }
    out.set_data(allocate(gpu, stream, out.nbytes()));
    if (old && old->nbytes() > 0) {
      Parameters list(4);
      list.pair(address_of(*old));
      list.pair(address_of(out));
      list.pair(old->nbytes());
      list.pair(old->nbytes());
      auto blocks = std::clamp<size_t>(old->nbytes() / 4096, 1, 256);
      add_input(mlx_stream, *old);
      add_output(mlx_stream, out);
      add_kernel(
          mlx_stream,
          found.back(),
          {1, static_cast<uint32_t>(blocks), 1},
          {256, 1, 1},
          0,
          list.data());
    }
  }
  // Counters are the call's own, as MLX may run calls side by side.
  const size_t counters_at = (kernel.scratch + 15) / 16 * 16;
  const size_t bytes = counters_at + (has_counters ? max_counters * sizeof(int32_t) : 0);
  std::optional<mx::array> scratch;
  if (bytes > 0) {
    scratch.emplace(mx::Shape{static_cast<int>(bytes)}, mx::uint8, nullptr, Arrays{});
    scratch->set_data(allocate(gpu, stream, bytes));
  }
  const Address own = scratch ? address_of(*scratch) : 0;
  if (has_counters) {
    Parameters list(2);
    list.pair(own + counters_at);
    list.pair(max_counters);
    add_output(mlx_stream, *scratch);
    add_kernel(mlx_stream, found[kernel.launches.size()], {1, 1, 1}, {256, 1, 1}, 0, list.data());
  }
  for (size_t i = 0; i < kernel.launches.size(); ++i) {
    auto& launch = kernel.launches[i];
    for (auto* a : from) {
      add_input(mlx_stream, *a);
    }
    // Outputs and scratch put the launches in order.
    for (auto& a : outputs) {
      add_output(mlx_stream, a);
    }
    if (scratch) {
      add_output(mlx_stream, *scratch);
    }
    auto list = parameters(launch, from, outputs, own, own + counters_at);
    add_kernel(mlx_stream, found[i], launch.grid, launch.block, launch.shared, list.data());
  }
  std::vector<std::shared_ptr<void>> kept; // until the launches end
  if (scratch) {
    kept.push_back(scratch->data_shared_ptr());
  }
  for (auto& a : packed) {
    kept.push_back(a.data_shared_ptr());
  }
  if (!kept.empty()) {
    on_completion(mlx_stream, [kept = std::move(kept)] {});
  }
}

} // namespace zmlx::cuda
