// zmlx/plan/plan.h: a graph made ready to replay: launches in order, every value at a fixed place,
// memory shared by lifetime.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "zmlx/graph/ir.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// Where a value lives while a plan runs.
struct Place {
  enum class Kind : uint8_t { constant, input, output, arena };
  Kind kind = Kind::arena;
  size_t index = 0; // constant, input or output number; byte offset in the arena
};

/// One kernel with the places of its arguments.
struct Launch {
  const Op* op = nullptr;
  Attrs attrs;
  CpuKernel kernel; // of a plan for the CPU
  cuda::Kernel cuda; // of a plan for a GPU
  std::vector<Place> in;
  std::vector<Place> out;
  Types in_types;
  Types out_types;
  bool solo = false; // too little work to be worth a barrier: one member runs it alone
};

/// Output `output` is input `input` with some of its contents replaced: the KV buffers of a step.
/// Its shape may differ from call to call; kernels read it from the tensor.
struct StatePair {
  int output;
  int input;
};

struct Plan {
  std::vector<Launch> launches;
  Types inputs;
  Types outputs;
  std::vector<bool> varies; // inputs whose shape may differ from call to call: the attribute
                            // "varies" of an input node
  std::vector<bool> on_host; // scalars that the CPU knows when the run is queued: the attribute
                             // "host" of an input node
  int rows = 0; // tokens of all sequences, where known: the largest attribute "rows" of an input
  std::optional<cuda::Device> device; // of a plan for a GPU
  std::vector<StatePair> states;
  std::vector<std::shared_ptr<const Constant>> constants;
  size_t arena_bytes = 0; // intermediate values, shared by lifetime
  size_t scratch_bytes = 0; // the largest scratch of a launch
  size_t intermediate_bytes = 0; // what the arena would need without sharing
};

/// Why a graph cannot be planned, in words; empty when it can.
struct PlanResult {
  std::shared_ptr<const Plan> plan;
  std::vector<std::string> reasons;
};

/// Plans `graph` for the CPU or for a GPU. Reshape nodes cost nothing; every other node must be an
/// op with a kernel for the device.
PlanResult make_plan(const Graph& graph, const std::optional<cuda::Device>& device = {});

/// Kernels that one run starts.
size_t launch_count(const Plan& plan);

/// The weights and activations that one run of a launch reads and writes, in bytes.
size_t traffic(const Launch& launch);
size_t traffic(const Plan& plan);

/// The launch list as a table: op, shapes, places, bytes.
std::string to_string(const Plan& plan);

} // namespace zmlx
