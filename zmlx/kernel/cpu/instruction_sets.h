// zmlx/kernel/cpu/instruction_sets.h: which of the instruction sets that kernels are built for they
// use.
#pragma once

#include <string>
#include <vector>

namespace zmlx::cpu {

/// Those of this CPU, the best first: "AVX3", "AVX2", ...
std::vector<std::string> instruction_sets();

/// Makes all kernels use one of them; "" for the best, as at the start. For tests: not while a
/// kernel runs.
void use_instruction_set(const std::string& name);

/// Whether use_instruction_set() asked for something else than the best.
bool is_restricted();

/// Which of AMX's tile products this process may use.
struct Tiles {
  bool bf16 = false;
  bool int8 = false;
};

/// Asks the system for the tile registers on the first call: they are off until a process wants
/// them. All threads may use them from then on.
const Tiles& tiles();

} // namespace zmlx::cpu
