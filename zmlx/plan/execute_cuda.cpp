// zmlx/plan/execute_cuda.cpp: slots, states and launches of one run on a GPU.
#include "zmlx/plan/execute_cuda.h"

#include <algorithm>
#include <stdexcept>

#include "zmlx/graph/capture.h"
#include "zmlx/plan/flight.h"
#include "zmlx/runtime/cuda/functions.h"
#include "zmlx/runtime/cuda/memory.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/error.h"

namespace zmlx::cuda {
namespace {

constexpr int graph_rows = 16; // more are a prompt, whose plan may run only once
constexpr int first_with_dependent_launch = 90;
constexpr int programmatic_serialization = 6; // CUlaunchAttributeID
constexpr int capture_thread_local = 1; // CUstreamCaptureMode
constexpr size_t slots_a_launch = 256;

struct PointerParameter {
  Address address;
  Address slot = 0;
};
struct ExtentParameter {
  int64_t value;
  Address slot = 0;
};

void launch(
    Stream stream,
    Function function,
    const std::array<uint32_t, 3>& grid,
    const std::array<uint32_t, 3>& block,
    size_t shared,
    void** parameters,
    bool is_dependent) {
  LaunchAttribute attribute{};
  attribute.id = programmatic_serialization;
  attribute.value.integer = 1;
  LaunchConfig config{
      {grid[0], grid[1], grid[2]},
      {block[0], block[1], block[2]},
      static_cast<unsigned>(shared),
      stream,
      is_dependent ? &attribute : nullptr,
      is_dependent ? 1u : 0u};
  auto& d = *driver();
  d.check(d.launch(&config, function, parameters, nullptr), "cuLaunchKernelEx");
}

const cuda::Launch write_slots_launch{"slots.cuh", "write_slots<256>", {}, {}, 0, {}};
const cuda::Launch copy_words_launch{"copy.cuh", "copy_chunks<uint4>", {}, {}, 0, {}};
const cuda::Launch copy_bytes_launch{"copy.cuh", "copy_chunks<uint8_t>", {}, {}, 0, {}};

} // namespace

/// The launches with parameters for one stream, whose workspace and slots they name.
struct Executor::Prepared {
  Address workspace = 0;
  Address slots = 0;
  size_t slot_bytes = 0;
  Binding binding;
  std::vector<std::vector<void*>> parameters;
  GraphExec graph = nullptr;
};

/// A state's old and new memory: the same outer extents, then one chunk each.
struct Executor::Chunks {
  Chunks(const mx::array& from, const mx::array& to) : from(address_of(from)), to(address_of(to)) {
    size_t axis = 0;
    while (axis < from.ndim() &&
           from.shape(static_cast<int>(axis)) == to.shape(static_cast<int>(axis))) {
      count *= from.shape(static_cast<int>(axis++));
    }
    from_bytes = to_bytes = static_cast<int64_t>(from.itemsize());
    for (; axis < from.ndim(); ++axis) {
      from_bytes *= from.shape(static_cast<int>(axis));
      to_bytes *= to.shape(static_cast<int>(axis));
    }
    if (count * from_bytes == static_cast<int64_t>(from.nbytes()) && from_bytes == to_bytes) {
      from_bytes = to_bytes = static_cast<int64_t>(from.nbytes());
      count = 1;
    }
  }

  Address from;
  Address to;
  int64_t count = 1;
  int64_t from_bytes;
  int64_t to_bytes;
};

Executor::Executor(std::shared_ptr<const Plan> plan, Arrays constants)
    : plan_(std::move(plan)), constants_(std::move(constants)), gpu_(gpu()) {
  if (auto why = why_not(); !why.empty()) {
    fail("zmlx_plan", why, ".");
  }
  std::vector<const cuda::Launch*> launches;
  for (auto& op : plan_->launches) {
    for (auto& launch : op.cuda.launches) {
      launches.push_back(&launch);
    }
  }
  size_t own = launches.size();
  for (auto* launch : {&write_slots_launch, &copy_words_launch, &copy_bytes_launch}) {
    launches.push_back(launch);
  }
  functions_ = functions(gpu_, launches);
  write_slots_ = functions_[own];
  copy_words_ = functions_[own + 1];
  copy_bytes_ = functions_[own + 2];
  functions_.resize(own);
  constant_data_.resize(constants_.size());
}

Executor::~Executor() {
  auto* d = driver();
  d->set_context(gpu_.context);
  for (auto& [stream, prepared] : prepared_) {
    if (prepared->graph) {
      d->graph_exec_destroy(prepared->graph);
    }
    if (prepared->slots) {
      d->free_async(prepared->slots, gpu_.stream);
    }
  }
}

const Gpu& Executor::gpu_of(const mx::Stream& stream) const {
  auto& gpu = cuda::gpu(stream.device.index);
  if (&gpu != &gpu_) {
    fail("zmlx_plan", "the plan was made for GPU 0 but runs on GPU ", stream.device.index, ".");
  }
  return gpu;
}

Executor::Prepared& Executor::prepare(Stream stream) {
  auto& d = *driver();
  auto& prepared = prepared_[stream];
  if (!prepared) {
    prepared = std::make_unique<Prepared>();
    prepared->slot_bytes = std::max<size_t>(8, slot_bytes(*plan_));
    d.check(d.allocate(&prepared->slots, prepared->slot_bytes, stream), "cuMemAllocAsync");
  }
  auto address = workspace(gpu_, stream, workspace_bytes(*plan_));
  // A constant that the CPU has read lies elsewhere from then on.
  bool has_moved = false;
  for (size_t i = 0; i < constants_.size(); ++i) {
    auto* data = buffer_of(constants_[i]).data;
    has_moved |= data != constant_data_[i];
    constant_data_[i] = data;
  }
  if (has_moved) {
    for (auto& [other, entry] : prepared_) {
      entry->workspace = 0;
    }
  }
  if (prepared->workspace == address) {
    return *prepared;
  }
  std::vector<Address> constants;
  for (auto& a : constants_) {
    constants.push_back(address_of(a));
  }
  prepared->binding =
      bind_plan(*plan_, constants, {address, prepared->slots, counters(gpu_, stream)});
  prepared->parameters.clear();
  for (auto& bound : prepared->binding.launches) {
    auto& list = prepared->parameters.emplace_back();
    for (auto start : bound.starts) {
      list.push_back(&bound.words[start]);
    }
  }
  if (plan_->rows > 0 && plan_->rows <= graph_rows) {
    d.check(d.stream_synchronize(stream), "cuStreamSynchronize");
    prepare_graph(*prepared);
  }
  prepared->workspace = address;
  return *prepared;
}

void Executor::launch_all(const Prepared& prepared, Stream stream) const {
  bool may_depend = gpu_.device.architecture >= first_with_dependent_launch;
  for (size_t i = 0; i < prepared.binding.launches.size(); ++i) {
    auto& described = *prepared.binding.launches[i].launch;
    // The first comes after the slots have been written, whose readers need not wait for them.
    launch(
        stream,
        functions_[i],
        described.grid,
        described.block,
        described.shared,
        const_cast<void**>(prepared.parameters[i].data()),
        may_depend && i > 0);
  }
}

void Executor::prepare_graph(Prepared& prepared) {
  static std::mutex mutex; // our stream records one graph at a time
  std::lock_guard lock(mutex);
  auto& d = *driver();
  if (prepared.graph) {
    d.check(d.graph_exec_destroy(prepared.graph), "cuGraphExecDestroy");
    prepared.graph = nullptr;
  }
  d.check(d.begin_capture(gpu_.stream, capture_thread_local), "cuStreamBeginCapture");
  Graph graph = nullptr;
  try {
    launch_all(prepared, gpu_.stream);
  } catch (...) {
    if (d.end_capture(gpu_.stream, &graph) == 0 && graph) {
      d.graph_destroy(graph);
    }
    throw;
  }
  d.check(d.end_capture(gpu_.stream, &graph), "cuStreamEndCapture");
  auto result = d.graph_instantiate(&prepared.graph, graph, 0);
  d.graph_destroy(graph);
  d.check(result, "cuGraphInstantiate");
}

void Executor::copy(const Chunks& chunks, Stream stream) const {
  constexpr int64_t word = 16;
  constexpr int64_t threads = 256;
  if (chunks.count * std::min(chunks.from_bytes, chunks.to_bytes) == 0) {
    return;
  }
  bool is_aligned = (chunks.from | chunks.to) % word == 0 && chunks.from_bytes % word == 0 &&
      chunks.to_bytes % word == 0;
  int64_t unit = is_aligned ? word : 1;
  PointerParameter from{chunks.from}, to{chunks.to};
  ExtentParameter from_words{chunks.from_bytes / unit}, to_words{chunks.to_bytes / unit};
  void* parameters[] = {&from, &to, &from_words, &to_words};
  auto along = std::clamp<int64_t>(from_words.value / (4 * threads), 1, 64);
  launch(
      stream,
      is_aligned ? copy_words_ : copy_bytes_,
      {static_cast<uint32_t>(chunks.count), static_cast<uint32_t>(along), 1},
      {threads, 1, 1},
      0,
      parameters,
      false);
}

void Executor::write_slots(const Prepared& prepared, const RunValues& run, Stream stream) const {
  auto values = slot_values(prepared.binding.slots, run);
  size_t count = values.size();
  values.resize((count + slots_a_launch - 1) / slots_a_launch * slots_a_launch);
  for (size_t first = 0; first < count; first += slots_a_launch) {
    PointerParameter to{prepared.slots + first * sizeof(uint64_t)};
    int used = static_cast<int>(std::min(count - first, slots_a_launch));
    void* parameters[] = {&to, &used, &values[first]};
    launch(stream, write_slots_, {1, 1, 1}, {slots_a_launch, 1, 1}, 0, parameters, false);
  }
}

StateCounts Executor::run(
    const mx::Stream& mlx_stream,
    Arrays inputs,
    Arrays& outputs,
    const std::vector<int>& grown,
    std::shared_ptr<void> keep,
    std::function<void()> landed) {
  auto& gpu = gpu_of(mlx_stream);
  auto stream = stream_of(mlx_stream);
  auto& d = *driver();
  d.check(d.set_context(gpu.context), "cuCtxSetCurrent");

  RunValues run;
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto& a = inputs[i];
    if (!a.flags().row_contiguous && a.size() > 1) {
      fail("zmlx_plan", "input ", i, " must be row-contiguous but is ", to_string(type_of(a)), ".");
    }
    bool is_scalar = i < plan_->inputs.size() && plan_->on_host[i];
    uint64_t word = 0;
    if (is_scalar) {
      // Written by the CPU when it was made and never on the GPU: reading it waits for nothing.
      std::copy_n(
          reinterpret_cast<const char*>(address_of(a)), a.nbytes(), reinterpret_cast<char*>(&word));
    }
    run.inputs.push_back(is_scalar ? word : address_of(a));
    run.input_shapes.push_back(type_of(a).shape);
  }

  StateCounts counts;
  std::vector<Chunks> copies;
  std::vector<bool> is_state(outputs.size()), is_taken(inputs.size());
  auto deadline = landing_deadline();
  for (size_t k = 0; k < plan_->states.size(); ++k) {
    auto input = static_cast<size_t>(plan_->states[k].input);
    auto output = static_cast<size_t>(plan_->states[k].output);
    auto &from = inputs[input], &to = outputs[output];
    is_state[output] = true;
    bool is_writable = from.data_shared_ptr()->is_owned() || is_ours(from);
    if (from.shape() == to.shape() && from.data_size() == from.size() && is_writable &&
        is_exclusive(from, output, deadline)) {
      to.copy_shared_buffer(from);
      is_taken[input] = true;
      ++counts.in_place;
      continue;
    }
    if (grown[k] >= 0) {
      auto zeros = static_cast<size_t>(grown[k]);
      to.copy_shared_buffer(inputs[zeros]);
      is_taken[zeros] = true;
    } else {
      to.set_data(allocate(gpu, stream, to.nbytes()));
    }
    copies.emplace_back(from, to);
    ++counts.copied;
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!is_state[i]) {
      outputs[i].set_data(allocate(gpu, stream, outputs[i].nbytes()));
    }
    run.outputs.push_back(address_of(outputs[i]));
    run.output_shapes.push_back(type_of(outputs[i]).shape);
  }

  struct Held {
    Arrays inputs;
    std::shared_ptr<void> keep;
    std::shared_ptr<Flight> flight;
    std::function<void()> landed;
  };
  auto held = std::make_shared<Held>(Held{{}, std::move(keep), nullptr, std::move(landed)});
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_taken[i]) {
      held->inputs.push_back(std::move(inputs[i]));
    }
  }

  commit(mlx_stream);
  {
    std::lock_guard lock(mutex_);
    auto& prepared = prepare(stream);
    write_slots(prepared, run, stream);
    for (auto& chunks : copies) {
      copy(chunks, stream);
    }
    if (prepared.graph) {
      d.check(d.graph_launch(prepared.graph, stream), "cuGraphLaunch");
    } else {
      launch_all(prepared, stream);
    }
  }
  held->flight = take_off(outputs);
  on_completion(mlx_stream, [held] {
    held->flight->landed.store(true, std::memory_order_release);
    held->landed();
  });
  return counts;
}

} // namespace zmlx::cuda
