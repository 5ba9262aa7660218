// zmlx/kernel/cpu/instruction_sets.cpp: Highway's choice, as a list of names.
#include "zmlx/kernel/cpu/instruction_sets.h"

#include <atomic>

#include "zmlx/kernel/cpu/targets.h"
// After targets.h, which says what is built.
#include "hwy/highway.h"
#include "zmlx/runtime/error.h"

namespace zmlx::cpu {
namespace {

std::atomic<bool> restricted{false};

} // namespace

// With a single target Highway has no table, and nothing of its library is needed.
#if HWY_TARGETS & (HWY_TARGETS - 1)

namespace {

/// Makes Highway see these targets alone; 0: all.
void choose(int64_t targets) {
  hwy::SetSupportedTargetsForTest(targets);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

} // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest; rest &= rest - 1) {
    names.emplace_back(hwy::TargetName(rest & -rest));
  }
  return names;
}

void use_instruction_set(const std::string& name) {
  choose(0);
  restricted = false;
  if (name.empty()) {
    return;
  }
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest; rest &= rest - 1) {
    if (name == hwy::TargetName(rest & -rest)) {
      choose(rest & -rest);
      restricted = true;
      return;
    }
  }
  fail("use_instruction_set", "this CPU or build has no ", name, ".");
}

#else

std::vector<std::string> instruction_sets() {
  return {hwy::TargetName(HWY_TARGETS)};
}

void use_instruction_set(const std::string& name) {
  if (!name.empty() && name != hwy::TargetName(HWY_TARGETS)) {
    fail("use_instruction_set", "this CPU or build has no ", name, ".");
  }
  restricted = !name.empty();
}

#endif

bool is_restricted() {
  return restricted;
}

} // namespace zmlx::cpu
