// zmlx/plan/execute.cpp: the primitive that replays a plan, and the rules for writing a state in
// place.
#include "zmlx/plan/execute.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "zmlx/graph/capture.h"
#include "zmlx/plan/execute_cuda.h"
#include "zmlx/plan/flight.h"
#include "zmlx/runtime/copy.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/team.h"

namespace zmlx {

struct Frame {
  /// A tensor of a launch that points to an input or an output of the run.
  struct Patch {
    Tensor* tensor;
    size_t index;
    bool whole_type; // a state: its shape may differ from the plan's
  };
  struct Resolved {
    const CpuKernel* kernel;
    bool solo;
    bool solo_next;
    std::vector<Tensor> in;
    std::vector<Tensor> out;
  };

  std::optional<mx::array> memory;
  std::byte* scratch = nullptr;
  std::vector<Resolved> launches;
  std::vector<Patch> inputs;
  std::vector<Patch> outputs;
};

namespace {

constexpr size_t kept_frame_bytes = size_t{16} << 20;

std::atomic<uint64_t> states_in_place{0};
std::atomic<uint64_t> states_copied{0};
std::atomic<uint64_t> runs{0};
std::atomic<int64_t> run_nanoseconds{0};

/// Copies a state into a longer or equal one: the same outer extents, then one chunk each.
struct StateCopy {
  const std::byte* from;
  std::byte* to;
  int64_t outer;
  size_t from_chunk;
  size_t to_chunk;

  void run(const Member& member) const {
    auto range = member.split(outer);
    for (int64_t i = range.begin; i < range.end; ++i) {
      auto n = static_cast<size_t>(i);
      auto kept = std::min(from_chunk, to_chunk);
      std::memcpy(to + n * to_chunk, from + n * from_chunk, kept);
      std::memset(to + n * to_chunk + kept, 0, to_chunk - kept);
    }
  }
};

StateCopy state_copy(const Tensor& from, const Tensor& to) {
  auto &a = from.shape(), &b = to.shape();
  int axis = 0;
  int64_t outer = 1;
  while (axis < a.rank() && a[axis] == b[axis]) {
    outer *= a[axis++];
  }
  auto chunk = [&](const Shape& shape) {
    size_t bytes = size_of(from.dtype());
    for (int i = axis; i < shape.rank(); ++i) {
      bytes *= static_cast<size_t>(shape[i]);
    }
    return bytes;
  };
  return {from.as<const std::byte>(), to.as<std::byte>(), outer, chunk(a), chunk(b)};
}

/// One run on the stream's thread.
struct Run {
  std::shared_ptr<Executable> executable;
  std::shared_ptr<Frame> frame;
  std::shared_ptr<Flight> flight;
  std::vector<StateCopy> copies;
  Arrays held; // inputs that the run reads; states written in place are held by their outputs

  void operator()() {
    struct Landing {
      Flight& flight;
      std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
      ~Landing() {
        ++runs;
        run_nanoseconds +=
            std::chrono::nanoseconds(std::chrono::steady_clock::now() - start).count();
        flight.landed.store(true, std::memory_order_release);
      }
    } landing{.flight = *flight};
    executable->run([&](Member& member) {
      for (auto& copy : copies) {
        copy.run(member);
      }
      if (!copies.empty()) {
        member.barrier();
      }
      for (auto& launch : frame->launches) {
        Call call{launch.in, launch.out, frame->scratch};
        if (!launch.solo) {
          launch.kernel->run(call, member);
        } else if (member.rank() == 0) {
          Member alone(Team::instance(), 0, 1);
          launch.kernel->run(call, alone);
        }
        if (!(launch.solo && launch.solo_next)) {
          member.barrier();
        }
      }
    });
  }
};

/// Where the inputs of one run wait for it.
struct Inputs {
  Arrays arrays;
};

/// Takes the inputs on behalf of Execute. MLX copies the input list into each output of a
/// primitive, which for a step would be hundreds of handles times hundreds of outputs, and would
/// keep every state shared.
class Gather : public mx::Primitive {
 public:
  Gather(mx::Stream s, std::shared_ptr<Inputs> inputs) : Primitive(s), inputs_(std::move(inputs)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    take(inputs, outputs);
  }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override {
    take(inputs, outputs);
  }
  const char* name() const override {
    return "zmlx_plan_inputs";
  }

 private:
  void take(const Arrays& inputs, Arrays& outputs) {
    // The list belongs to this node and is dropped after this call; emptied now, MLX's task does
    // not hold the buffers.
    inputs_->arrays = std::move(const_cast<Arrays&>(inputs));
    const_cast<Arrays&>(inputs).clear();
    outputs[0].set_data(mx::allocator::malloc(0));
  }

  std::shared_ptr<Inputs> inputs_;
};

class Execute : public mx::Primitive {
 public:
  Execute(
      mx::Stream s,
      std::shared_ptr<Executable> executable,
      std::shared_ptr<Inputs> inputs,
      std::vector<int> grown)
      : Primitive(s),
        executable_(std::move(executable)),
        inputs_(std::move(inputs)),
        grown_(std::move(grown)) {}

  void eval_cpu(const Arrays&, Arrays& outputs) override;
  void eval_gpu(const Arrays&, Arrays& outputs) override;
  Arrays vjp(const Arrays&, const Arrays&, const std::vector<int>&, const Arrays&) override {
    fail(name(), "a plan has no gradient; call zmlx.patch.unpatch(model) before training.");
  }
  const char* name() const override {
    return "zmlx_plan";
  }

 private:
  Arrays take_inputs() {
    Arrays inputs = std::move(inputs_->arrays);
    if (inputs.size() < executable_->plan().inputs.size()) {
      fail(name(), "this run failed before and its inputs are gone; call the model again.");
    }
    return inputs;
  }

  std::shared_ptr<Executable> executable_;
  std::shared_ptr<Inputs> inputs_;
  std::vector<int> grown_; // for a GPU, by state: the input with zeros for its new value, or -1
};

void Execute::eval_gpu(const Arrays&, Arrays& outputs) {
  auto counts =
      executable_->gpu().run(stream(), take_inputs(), outputs, grown_, executable_, [] { ++runs; });
  states_in_place += counts.in_place;
  states_copied += counts.copied;
}

void Execute::eval_cpu(const Arrays&, Arrays& outputs) {
  auto& plan = executable_->plan();
  auto& encoder = mx::cpu::get_command_encoder(stream());
  Arrays inputs = take_inputs();

  std::vector<Tensor> in;
  for (auto& a : inputs) {
    in.push_back(packed_tensor(a, encoder));
  }

  Run run{executable_, {}, {}, {}, {}};
  auto deadline = landing_deadline();
  std::vector<bool> is_state(outputs.size(), false), in_place(inputs.size(), false);
  for (auto [output, input] : plan.states) {
    auto& from = inputs[static_cast<size_t>(input)];
    auto& to = outputs[static_cast<size_t>(output)];
    is_state[static_cast<size_t>(output)] = true;
    bool fits = from.shape() == to.shape() && from.flags().row_contiguous &&
        from.data_size() == from.size();
    if (fits && from.data_shared_ptr()->is_owned() &&
        is_exclusive(from, static_cast<size_t>(output), deadline)) {
      to.copy_shared_buffer(from);
      in_place[static_cast<size_t>(input)] = true;
      ++states_in_place;
      continue;
    }
    to.set_data(mx::allocator::malloc(to.nbytes()));
    run.copies.push_back(state_copy(in[static_cast<size_t>(input)], tensor_of(to)));
    ++states_copied;
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!in_place[i]) {
      run.held.push_back(std::move(inputs[i]));
    }
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!is_state[i]) {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
    }
  }

  // The frame goes back to its executable when the last copy of the task is gone, run or not.
  run.frame = {executable_->acquire().release(), [executable = executable_](Frame* frame) {
                 executable->release(std::unique_ptr<Frame>(frame));
               }};
  for (auto& patch : run.frame->inputs) {
    patch.tensor->data = in[patch.index].data;
    if (patch.whole_type) {
      patch.tensor->type = in[patch.index].type;
    }
  }
  for (auto& patch : run.frame->outputs) {
    auto& out = outputs[patch.index];
    patch.tensor->data = out.data<char>();
    if (patch.whole_type) {
      patch.tensor->type = type_of(out);
    }
  }
  run.flight = take_off(outputs);
  encoder.dispatch(std::move(run));
}

} // namespace

Executable::Executable(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {
  for (auto& constant : plan_->constants) {
    owners_.push_back(array_of(*constant));
  }
  mx::eval(owners_);
  for (auto& a : owners_) {
    if (!a.flags().row_contiguous) {
      a = mx::contiguous(a);
    }
  }
  mx::eval(owners_);
  if (plan_->device) {
    gpu_ = std::make_unique<cuda::Executor>(plan_, owners_);
    return;
  }
  for (auto& a : owners_) {
    constants_.push_back(tensor_of(a));
  }
}

Executable::~Executable() = default;

std::unique_ptr<Frame> Executable::acquire() {
  {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      auto frame = std::move(free_.back());
      free_.pop_back();
      return frame;
    }
  }
  auto frame = std::make_unique<Frame>();
  constexpr size_t alignment = 64;
  size_t bytes = plan_->arena_bytes + plan_->scratch_bytes + alignment;
  frame->memory.emplace(
      mx::Shape{static_cast<int>(bytes / alignment + 1), alignment}, mx::uint8, nullptr, Arrays{});
  frame->memory->set_data(mx::allocator::malloc(frame->memory->nbytes()));
  auto address = reinterpret_cast<uintptr_t>(frame->memory->data<char>());
  auto* arena = reinterpret_cast<std::byte*>((address + alignment - 1) / alignment * alignment);
  frame->scratch = arena + plan_->arena_bytes;

  std::vector<bool> is_state(plan_->outputs.size());
  for (auto [output, input] : plan_->states) {
    is_state[static_cast<size_t>(output)] = true;
  }
  auto resolve = [&](Tensor& tensor, const Place& place, const Type& type) {
    tensor.type = type;
    switch (place.kind) {
      case Place::Kind::constant:
        tensor.data = constants_[place.index].data;
        break;
      case Place::Kind::arena:
        tensor.data = arena + place.index;
        break;
      case Place::Kind::input:
        frame->inputs.push_back({&tensor, place.index, plan_->varies[place.index]});
        break;
      case Place::Kind::output:
        frame->outputs.push_back({&tensor, place.index, is_state[place.index]});
        break;
    }
  };
  frame->launches.resize(plan_->launches.size());
  for (size_t i = 0; i < plan_->launches.size(); ++i) {
    auto& launch = plan_->launches[i];
    auto& resolved = frame->launches[i];
    resolved.kernel = &launch.kernel;
    resolved.solo = launch.solo;
    resolved.solo_next = i + 1 < plan_->launches.size() && plan_->launches[i + 1].solo;
    resolved.in.resize(launch.in.size());
    resolved.out.resize(launch.out.size());
    for (size_t k = 0; k < launch.in.size(); ++k) {
      resolve(resolved.in[k], launch.in[k], launch.in_types[k]);
    }
    for (size_t k = 0; k < launch.out.size(); ++k) {
      resolve(resolved.out[k], launch.out[k], launch.out_types[k]);
    }
  }
  return frame;
}

void Executable::release(std::unique_ptr<Frame> frame) {
  if (frame->memory->nbytes() <= kept_frame_bytes) {
    std::lock_guard lock(mutex_);
    free_.push_back(std::move(frame));
  }
}

void Executable::run(const std::function<void(Member&)>& body) {
  auto& team = Team::instance();
  if (team.size() == 1) {
    team.run(body);
    return;
  }
  std::unique_lock lock(mutex_);
  auto choice = width_.next();
  lock.unlock();
  auto start = std::chrono::steady_clock::now();
  choice == Width::Choice::all ? team.run(body) : team.run_alone(body);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  lock.lock();
  width_.note(choice, seconds);
}

/// Whether an array will be row-contiguous when it is evaluated, as far as can be told now.
static bool is_known_contiguous(const mx::array& a) {
  if (a.has_primitive() && a.status() == mx::array::Status::unscheduled) {
    return dynamic_cast<const Execute*>(&a.primitive()) != nullptr;
  }
  return a.flags().row_contiguous;
}

Arrays execute(
    std::shared_ptr<Executable> executable,
    const Arrays& inputs,
    const std::vector<mx::Shape>& state_shapes,
    mx::StreamOrDevice s) {
  auto& plan = executable->plan();
  if (inputs.size() != plan.inputs.size() || state_shapes.size() != plan.states.size()) {
    fail(
        "zmlx_plan",
        "expected ",
        plan.inputs.size(),
        " inputs and ",
        plan.states.size(),
        " state shapes but got ",
        inputs.size(),
        " and ",
        state_shapes.size(),
        ".");
  }
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& type : plan.outputs) {
    shapes.push_back(mlx_shape(type.shape));
    dtypes.push_back(mlx_dtype(type.dtype));
  }
  for (size_t i = 0; i < plan.states.size(); ++i) {
    shapes[static_cast<size_t>(plan.states[i].output)] = state_shapes[i];
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto& expected = plan.inputs[i];
    bool fits = plan.varies[i] ? dtype_of(inputs[i].dtype()) == expected.dtype
                               : type_of(inputs[i]) == expected;
    if (!fits) {
      fail(
          "zmlx_plan",
          "input ",
          i,
          " must be ",
          to_string(expected),
          " but is ",
          to_string(type_of(inputs[i])),
          ".");
    }
  }
  auto stream = mx::to_stream(s);
  bool is_gpu = stream.device == mx::Device::gpu;
  if (is_gpu != plan.device.has_value()) {
    fail(
        "zmlx_plan",
        "the plan is for the ",
        is_gpu ? "CPU" : "GPU",
        " but the stream is the ",
        is_gpu ? "GPU's." : "CPU's.");
  }
  Arrays all = inputs;
  std::vector<int> grown(plan.states.size(), -1);
  if (is_gpu) {
    for (auto& a : all) {
      if (!is_known_contiguous(a)) {
        a = mx::contiguous(a, false, stream);
      }
    }
    for (size_t i = 0; i < plan.states.size(); ++i) {
      auto& old = inputs[static_cast<size_t>(plan.states[i].input)];
      if (old.shape() != state_shapes[i]) {
        grown[i] = static_cast<int>(all.size());
        all.push_back(mx::zeros(state_shapes[i], old.dtype(), stream));
      }
    }
  }
  auto waiting = std::make_shared<Inputs>();
  mx::array gathered({0}, mx::uint8, std::make_shared<Gather>(stream, waiting), all);
  return mx::array::make_arrays(
      std::move(shapes),
      dtypes,
      std::make_shared<Execute>(stream, std::move(executable), waiting, std::move(grown)),
      {gathered});
}

RunCounts run_counts() {
  return {
      states_in_place.load(),
      states_copied.load(),
      runs.load(),
      static_cast<double>(run_nanoseconds.load()) * 1e-9};
}

} // namespace zmlx
