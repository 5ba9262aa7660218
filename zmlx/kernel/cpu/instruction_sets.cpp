// zmlx/kernel/cpu/instruction_sets.cpp: Highway's choice, as a list of names.
#include "zmlx/kernel/cpu/instruction_sets.h"

#include <atomic>

#include "zmlx/kernel/cpu/targets.h"
// After targets.h, which says what is built.
#include "hwy/highway.h"
#include "zmlx/runtime/error.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

const Tiles& tiles() {
  static const Tiles found = [] {
    Tiles tiles;
#if defined(__x86_64__) && defined(__linux__)
    constexpr long request_permission = 0x1023; // ARCH_REQ_XCOMP_PERM
    constexpr long tile_data = 18; // XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) &&
        syscall(SYS_arch_prctl, request_permission, tile_data) == 0) {
      tiles.bf16 = d >> 22 & 1;
      tiles.int8 = d >> 25 & 1;
    }
#endif
    return tiles;
  }();
  return found;
}

} // namespace zmlx::cpu
