// zmlx/plan/bind.cpp: from places and arguments to addresses and slots.
#include "zmlx/plan/bind.h"

#include <algorithm>
#include <bit>

namespace zmlx::cuda {
namespace {

constexpr size_t scratch_alignment = 256;

size_t scratch_start(const Plan& plan) {
  return (plan.arena_bytes + scratch_alignment - 1) / scratch_alignment * scratch_alignment;
}

class Binder {
 public:
  Binder(const Plan& plan, std::span<const Address> constants, const Memory& memory)
      : plan_(plan),
        constants_(constants),
        workspace_(memory.workspace),
        slots_(memory.slots),
        counters_(memory.counters) {
    is_state_.resize(plan.outputs.size());
    for (auto [output, input] : plan.states) {
      is_state_[static_cast<size_t>(output)] = true;
    }
  }

  Binding run() {
    for (auto& op : plan_.launches) {
      for (auto& launch : op.cuda.launches) {
        bound_ = {&launch, {}, {}};
        for (auto& argument : launch.arguments) {
          bound_.starts.push_back(bound_.words.size());
          add(op, argument);
        }
        binding_.launches.push_back(std::move(bound_));
      }
    }
    return std::move(binding_);
  }

 private:
  void add(const zmlx::Launch& op, const Argument& argument) {
    auto index = static_cast<size_t>(argument.index);
    switch (argument.kind) {
      case Argument::Kind::in:
        return pointer(op.in[index], argument.offset);
      case Argument::Kind::out:
        return pointer(op.out[index], argument.offset);
      case Argument::Kind::scratch:
        return words(workspace_ + scratch_start(plan_) + argument.offset, 0);
      case Argument::Kind::counter:
        return words(counters_ + index * sizeof(int32_t), 0);
      case Argument::Kind::in_dim:
        return extent(op.in[index], op.in_types[index], argument.axis);
      case Argument::Kind::out_dim:
        return extent(op.out[index], op.out_types[index], argument.axis);
      case Argument::Kind::extent:
        return words(argument.offset, 0);
      case Argument::Kind::i32:
        return bound_.words.push_back(static_cast<uint32_t>(argument.integer));
      case Argument::Kind::f32:
        return bound_.words.push_back(std::bit_cast<uint32_t>(argument.real));
    }
  }

  void words(uint64_t first, uint64_t second) {
    bound_.words.push_back(first);
    bound_.words.push_back(second);
  }

  void pointer(const Place& place, size_t offset) {
    switch (place.kind) {
      case Place::Kind::constant:
        return words(constants_[place.index] + offset, 0);
      case Place::Kind::arena:
        return words(workspace_ + place.index + offset, 0);
      case Place::Kind::input:
        if (plan_.on_host[place.index]) {
          return words(slot({Slot::Kind::scalar, place.index}) + offset, 0);
        }
        return words(0, slot({Slot::Kind::input, place.index, 0, offset}));
      case Place::Kind::output:
        return words(0, slot({Slot::Kind::output, place.index, 0, offset}));
    }
  }

  void extent(const Place& place, const Type& type, int axis) {
    if (place.kind == Place::Kind::input && plan_.varies[place.index]) {
      words(0, slot({Slot::Kind::input_dim, place.index, axis}));
    } else if (place.kind == Place::Kind::output && is_state_[place.index]) {
      words(0, slot({Slot::Kind::output_dim, place.index, axis}));
    } else {
      words(static_cast<uint64_t>(type.shape[axis]), 0);
    }
  }

  /// The slot's address.
  Address slot(const Slot& wanted) {
    auto& slots = binding_.slots;
    auto it = std::find(slots.begin(), slots.end(), wanted);
    auto index = static_cast<size_t>(it - slots.begin());
    if (it == slots.end()) {
      slots.push_back(wanted);
    }
    return slots_ + index * sizeof(uint64_t);
  }

  const Plan& plan_;
  std::span<const Address> constants_;
  Address workspace_;
  Address slots_;
  Address counters_;
  std::vector<bool> is_state_; // by output
  BoundLaunch bound_{};
  Binding binding_;
};

} // namespace

Binding bind_plan(const Plan& plan, std::span<const Address> constants, const Memory& memory) {
  return Binder(plan, constants, memory).run();
}

size_t workspace_bytes(const Plan& plan) {
  return scratch_start(plan) + plan.scratch_bytes;
}

size_t slot_bytes(const Plan& plan) {
  std::vector<Address> nowhere(plan.constants.size());
  return bind_plan(plan, nowhere, {}).slots.size() * sizeof(uint64_t);
}

std::vector<uint64_t> slot_values(std::span<const Slot> slots, const RunValues& run) {
  std::vector<uint64_t> values;
  values.reserve(slots.size());
  for (auto& slot : slots) {
    switch (slot.kind) {
      case Slot::Kind::input:
        values.push_back(run.inputs[slot.index] + slot.offset);
        break;
      case Slot::Kind::output:
        values.push_back(run.outputs[slot.index] + slot.offset);
        break;
      case Slot::Kind::scalar:
        values.push_back(run.inputs[slot.index]);
        break;
      case Slot::Kind::input_dim:
        values.push_back(static_cast<uint64_t>(run.input_shapes[slot.index][slot.axis]));
        break;
      case Slot::Kind::output_dim:
        values.push_back(static_cast<uint64_t>(run.output_shapes[slot.index][slot.axis]));
        break;
    }
  }
  return values;
}

} // namespace zmlx::cuda
