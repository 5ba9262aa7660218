// zmlx/runtime/cores.h: how many cores this process may use.
#pragma once

#include <optional>
#include <string>

namespace zmlx {

/// Cores in this process's affinity mask.
int affinity_cores();

/// The tightest CPU limit, in whole cores, over this process's cgroups and those above them;
/// nothing where there is none. Arguments: the list of its cgroups, and where they are mounted.
std::optional<int> cgroup_cores(
    const std::string& groups_file = "/proc/self/cgroup",
    const std::string& root = "/sys/fs/cgroup");

} // namespace zmlx
