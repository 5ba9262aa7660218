// zmlx/runtime/cores.cpp: affinity masks and the CPU limits of cgroups, both versions.
#include "zmlx/runtime/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <thread>

namespace zmlx {

int affinity_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

namespace {

/// Cores granted by "quota period" in a file, or nothing where there is no limit.
std::optional<int> quota_cores(const std::string& quota_path, const std::string& period_path) {
  std::ifstream quota_file(quota_path);
  double quota = 0;
  double period = 0;
  if (!(quota_file >> quota)) {
    return {}; // no such file, or "max"
  }
  if (period_path.empty()) {
    quota_file >> period;
  } else {
    std::ifstream(period_path) >> period;
  }
  if (quota <= 0 || period <= 0) {
    return {};
  }
  return std::max(1, static_cast<int>(std::ceil(quota / period)));
}

} // namespace

std::optional<int> cgroup_cores(const std::string& groups_file, const std::string& root) {
  std::optional<int> least;
  std::ifstream groups(groups_file);
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) {
      continue;
    }
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool v2 = controllers == ",,";
    if (!v2 && controllers.find(",cpu,") == std::string::npos) {
      continue;
    }
    // Inside a container the path may name nothing here; its root is then the group itself.
    for (std::string path = line.substr(second + 1);; path.erase(path.rfind('/'))) {
      const std::string at = root + (v2 ? "" : "/cpu") + path + "/";
      auto cores = v2 ? quota_cores(at + "cpu.max", "")
                      : quota_cores(at + "cpu.cfs_quota_us", at + "cpu.cfs_period_us");
      if (cores && (!least || *cores < *least)) {
        least = cores;
      }
      if (path.find('/') == std::string::npos) {
        break;
      }
    }
  }
  return least;
}

} // namespace zmlx
