// zmlx/plan/bind.h: a CUDA plan's launches with their parameters as bytes. Knows neither the driver
// nor MLX.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "zmlx/plan/plan.h"

namespace zmlx::cuda {

using Address = unsigned long long;

/// Eight bytes of device memory that a run fills in and kernels read: what may differ from run to
/// run.
struct Slot {
  enum class Kind : uint8_t { input, output, scalar, input_dim, output_dim };
  Kind kind;
  size_t index; // input or output
  int axis = 0; // of a dimension
  size_t offset = 0; // bytes into the array

  bool operator==(const Slot&) const = default;
};

/// A launch's parameters: `words` in the layout of the kernel's, one starting at each of `starts`.
struct BoundLaunch {
  const Launch* launch;
  std::vector<uint64_t> words;
  std::vector<size_t> starts;
};

struct Binding {
  std::vector<Slot> slots;
  std::vector<BoundLaunch> launches;
};

/// What a run has of the device's memory: arena and then scratch, slots, counters.
struct Memory {
  Address workspace = 0;
  Address slots = 0;
  Address counters = 0;
};

/// The parameters of all launches, given where constants and memory are.
Binding bind_plan(const Plan& plan, std::span<const Address> constants, const Memory& memory);

/// Bytes of arena and scratch.
size_t workspace_bytes(const Plan& plan);

/// Bytes that the slots take at most.
size_t slot_bytes(const Plan& plan);

/// One run's tensors; inputs on the host hold their value in `data` itself.
struct RunValues {
  std::vector<uint64_t> inputs;
  std::vector<uint64_t> outputs;
  std::vector<Shape> input_shapes;
  std::vector<Shape> output_shapes;
};

/// What the slots hold for a run.
std::vector<uint64_t> slot_values(std::span<const Slot> slots, const RunValues& run);

} // namespace zmlx::cuda
