// python/src/runner.h: the patched model's call: checks the arguments, finds the step for their
// shape, runs it.
#pragma once

#include <nanobind/nanobind.h>

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "zmlx/graph/rewrite.h"
#include "zmlx/plan/step.h"

namespace zmlx {

namespace nb = nanobind;

/// A container's entry as it was when the model was captured: a module's attribute or a list's
/// item.
struct GuardedEntry {
  nb::object container;
  nb::object key; // for a list its index
  nb::object value;
  uintptr_t array_id = 0; // 0 when the value is no array
};

/// A planned step, or a null one where there is no plan, and when it was last used.
struct KnownStep {
  std::shared_ptr<Step> step;
  uint64_t last_use = 0;
};

class Runner {
 public:
  /// `trace_step(arrays, padded)` runs the model on stand-in caches and returns logits and buffers;
  /// `cache_type` and `batch_cache_type` are the classes of cache that are supported, all of one
  /// call being of one class; `entries` are (container, key) pairs of the model's weights and
  /// modules.
  Runner(
      nb::object trace_step,
      nb::object cache_type,
      nb::object batch_cache_type,
      nb::list entries,
      nb::list buffer_types,
      RewriteOptions options);

  /// The logits, after advancing the caches; or None, with `reason` set, when the model itself has
  /// to be called. Raises for caches that do not belong together.
  nb::object call(nb::handle tokens, nb::handle cache);
  /// Plans the step for a batch and a number of tokens; reasons in `reasons` when it cannot be.
  bool prepare(int batch, int tokens, bool padded = false);
  /// The graph before and after rewriting and the plan, as text. `target` is "cpu", "cuda" (a
  /// Hopper GPU, present or not) or empty for MLX's default device.
  std::string explain(int batch, int tokens, bool padded = false, const std::string& target = "");

  const RewriteReport& report() const {
    return report_;
  }

  std::vector<std::string> reasons; // why the last capture has no plan
  std::string reason; // why the last call went to the model
  size_t bytes_per_run = 0; // of the last prepared step
  size_t launches = 0;
  double seconds = 0; // that the last capture took
  std::string device = "cpu"; // of the last prepared step: or "cuda sm_90"

  /// For Python's cycle collector.
  int traverse(visitproc visit, void* arg);
  void clear();

 private:
  enum class Weights { same, changed, traced };

  /// Batch, tokens, dtype of the token ids, whether sequences are padded on the left, and the
  /// device.
  using Key = std::tuple<int, int, mx::Dtype::Val, bool, mx::Device::DeviceType>;

  Weights check_weights();
  void read_entries();
  Graph capture_step(Key key);
  Graph rewritten_step(Key key, RewriteReport& report, std::string* text = nullptr);
  std::shared_ptr<Step> find_step(Key key);
  nb::object decline(std::string why);

  nb::object trace_step_;
  nb::object cache_type_;
  nb::object batch_cache_type_;
  nb::object keys_name_;
  nb::object values_name_;
  nb::object offset_name_;
  nb::object index_name_;
  int cache_step_;
  std::vector<GuardedEntry> entries_;
  std::vector<std::pair<Shape, mx::Dtype>> buffers_; // (heads, head size) and dtype of each buffer
  RewriteOptions options_;
  RewriteReport report_;
  std::map<Key, KnownStep> steps_;
  uint64_t uses_ = 0;
};

} // namespace zmlx
