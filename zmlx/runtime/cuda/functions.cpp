// zmlx/runtime/cuda/functions.cpp: compiles what is missing, a program a source, and loads it.
#include "zmlx/runtime/cuda/functions.h"

#include <future>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "zmlx/runtime/cuda/nvrtc.h"

namespace zmlx::cuda {
namespace {

constexpr int max_dynamic_shared_bytes = 8; // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int preferred_shared_percent = 9; // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
constexpr size_t shared_without_asking = 48 * 1024;
// Of what L1 and shared memory have together. Left to itself the driver gives kernels that need
// little more than this, and a decode step that the rest of it, as L1, would have served takes a
// quarter longer.
constexpr int shared_percent = 60;
constexpr int as_the_driver_likes = -1;

using Source = std::pair<std::string, const std::string*>; // file, and the text behind it
using Key = std::pair<Source, std::string>; // with the instantiation

Key key_of(const Launch& launch) {
  return {{launch.source, launch.generated}, launch.kernel};
}

struct Known {
  Function function = nullptr;
  size_t shared = shared_without_asking;
};

} // namespace

std::vector<Function> functions(const Gpu& gpu, const std::vector<const Launch*>& launches) {
  static std::mutex mutex;
  static std::map<Context, std::map<Key, Known>> by_context;
  std::lock_guard lock(mutex);
  auto& known = by_context[gpu.context];
  std::map<Source, std::set<std::string>> missing;
  for (auto* launch : launches) {
    if (!known.contains(key_of(*launch))) {
      missing[{launch->source, launch->generated}].insert(launch->kernel);
    }
  }
  struct Job {
    Source source;
    std::vector<std::string> names;
    std::future<Binary> binary;
  };
  std::vector<Job> jobs;
  for (auto& [source, names] : missing) {
    jobs.push_back({source, {names.begin(), names.end()}, {}});
  }
  for (auto& job : jobs) {
    job.binary = std::async(std::launch::async, [&job, architecture = gpu.device.architecture] {
      auto& [file, generated] = job.source;
      return compile(file, job.names, architecture, generated ? *generated : std::string());
    });
  }
  auto& d = *driver();
  if (!jobs.empty()) {
    d.check(d.set_context(gpu.context), "cuCtxSetCurrent");
  }
  for (auto& job : jobs) {
    auto binary = job.binary.get();
    Module module = nullptr; // stays loaded: graphs and runs in flight need it
    d.check(d.module_load(&module, binary.cubin.data()), "cuModuleLoadData");
    for (size_t i = 0; i < job.names.size(); ++i) {
      Function function = nullptr;
      d.check(d.module_function(&function, module, binary.names[i].c_str()), "cuModuleGetFunction");
      d.check(
          d.function_set(function, preferred_shared_percent, shared_percent), "cuFuncSetAttribute");
      known[{job.source, job.names[i]}].function = function;
    }
  }
  std::vector<Function> out;
  for (auto* launch : launches) {
    auto& entry = known.at(key_of(*launch));
    if (launch->shared > entry.shared) {
      d.check(d.set_context(gpu.context), "cuCtxSetCurrent");
      d.check(
          d.function_set(
              entry.function, max_dynamic_shared_bytes, static_cast<int>(launch->shared)),
          "cuFuncSetAttribute");
      // Blocks that need much are to lie side by side, if there are so many.
      auto blocks = uint64_t{launch->grid[0]} * launch->grid[1] * launch->grid[2];
      if (blocks > static_cast<uint64_t>(gpu.device.multiprocessors)) {
        d.check(
            d.function_set(entry.function, preferred_shared_percent, as_the_driver_likes),
            "cuFuncSetAttribute");
      }
      entry.shared = launch->shared;
    }
    out.push_back(entry.function);
  }
  return out;
}

} // namespace zmlx::cuda
