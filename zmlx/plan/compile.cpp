// zmlx/plan/compile.cpp: the cache of traces behind compile().
#include "zmlx/plan/compile.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "mlx/device.h"
#include "mlx/utils.h"
#include "zmlx/graph/capture.h"
#include "zmlx/plan/execute.h"

namespace zmlx {
namespace {

struct Entry {
  Graph graph;
  std::shared_ptr<Executable> executable; // null when some node has to stay MLX's
};

class Compiled {
 public:
  Compiled(Function fn, RewriteOptions options)
      : fn_(std::move(fn)), options_(std::move(options)) {}

  Arrays operator()(const Arrays& inputs) {
    if (std::any_of(inputs.begin(), inputs.end(), [](auto& a) { return a.is_tracer(); })) {
      return fn_(inputs);
    }
    auto& entry = find(inputs);
    if (!entry.executable) {
      return emit(entry.graph, inputs);
    }
    std::vector<mx::Shape> state_shapes;
    for (auto [output, input] : entry.executable->plan().states) {
      state_shapes.push_back(inputs[static_cast<size_t>(input)].shape());
    }
    return execute(entry.executable, inputs, state_shapes);
  }

 private:
  Entry& find(const Arrays& inputs) {
    std::string signature = mx::default_device() == mx::Device::cpu ? "cpu" : "gpu";
    for (auto& a : inputs) {
      signature += ' ' + to_string(type_of(a));
    }
    {
      std::lock_guard lock(mutex_);
      if (auto it = entries_.find(signature); it != entries_.end()) {
        return *it->second;
      }
    }
    auto entry = std::make_unique<Entry>(Entry{trace(fn_, inputs), nullptr});
    rewrite(entry->graph, options_);
    if (signature.starts_with("cpu")) {
      if (auto plan = make_plan(entry->graph).plan) {
        entry->executable = std::make_shared<Executable>(plan);
      }
    }
    std::lock_guard lock(mutex_);
    return *entries_.try_emplace(signature, std::move(entry)).first->second;
  }

  Function fn_;
  RewriteOptions options_;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<Entry>> entries_;
};

} // namespace

Function compile(Function fn, RewriteOptions options) {
  auto compiled = std::make_shared<Compiled>(std::move(fn), std::move(options));
  return [compiled](const Arrays& inputs) { return (*compiled)(inputs); };
}

} // namespace zmlx
