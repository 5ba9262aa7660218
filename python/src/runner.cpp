// python/src/runner.cpp: from Python's caches to a step and back, once a token.
#include "runner.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>

#include "mlx/mlx.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

constexpr size_t kept_prompt_steps = 16;

const mx::array* as_array(nb::handle object) {
  return nb::isinstance<mx::array>(object) ? nb::inst_ptr<mx::array>(object) : nullptr;
}

uintptr_t array_id(nb::handle object) {
  auto* a = as_array(object);
  return a ? a->id() : 0;
}

/// A borrowed reference to the entry, null when it is gone.
PyObject* entry_of(const GuardedEntry& entry) {
  auto* container = entry.container.ptr();
  if (PyList_Check(container)) {
    auto index = PyLong_AsSsize_t(entry.key.ptr());
    return index < PyList_GET_SIZE(container) ? PyList_GET_ITEM(container, index) : nullptr;
  }
  return PyDict_GetItem(container, entry.key.ptr());
}

/// One cache's contents.
struct CacheView {
  nb::object cache;
  nb::object keys;
  nb::object values;
};

/// MLX's default device for a while: the CPU, where MLX takes every operation apart, so that one
/// set of patterns fits all devices.
class OnCpu {
 public:
  OnCpu() {
    mx::set_default_device(mx::Device::cpu);
  }
  ~OnCpu() {
    mx::set_default_device(before_);
  }
  OnCpu(const OnCpu&) = delete;
  OnCpu& operator=(const OnCpu&) = delete;

 private:
  mx::Device before_ = mx::default_device();
};

/// What plans are made for on MLX's default device.
std::optional<cuda::Device> default_target() {
  return mx::default_device() == mx::Device::gpu ? cuda::device() : std::nullopt;
}

/// Which GPU plans for one that is not there are for: an H100.
constexpr cuda::Device hopper{90, 132, 227 * 1024};

/// The capacity that MLX's own cache would grow to.
int grown_capacity(int capacity, int offset, int tokens, int step) {
  if (offset + tokens <= capacity) {
    return capacity;
  }
  int base = offset % step ? offset : capacity;
  return base + (tokens + step - 1) / step * step;
}

} // namespace

Runner::Runner(
    nb::object trace_step,
    nb::object cache_type,
    nb::object batch_cache_type,
    nb::list entries,
    nb::list buffer_types,
    RewriteOptions options)
    : trace_step_(std::move(trace_step)),
      cache_type_(std::move(cache_type)),
      batch_cache_type_(std::move(batch_cache_type)),
      keys_name_(nb::steal(PyUnicode_InternFromString("keys"))),
      values_name_(nb::steal(PyUnicode_InternFromString("values"))),
      offset_name_(nb::steal(PyUnicode_InternFromString("offset"))),
      index_name_(nb::steal(PyUnicode_InternFromString("_idx"))),
      cache_step_(nb::cast<int>(cache_type_.attr("step"))),
      options_(std::move(options)) {
  for (nb::handle pair : entries) {
    entries_.push_back({pair[0], pair[1], {}, 0});
  }
  for (nb::handle type : buffer_types) {
    buffers_.push_back(
        {Shape{nb::cast<int64_t>(type[0]), nb::cast<int64_t>(type[1])},
         nb::cast<mx::Dtype>(type[2])});
  }
  read_entries();
}

void Runner::read_entries() {
  for (auto& entry : entries_) {
    auto* value = entry_of(entry);
    entry.value = value ? nb::borrow(value) : nb::none();
    entry.array_id = array_id(entry.value);
  }
}

Runner::Weights Runner::check_weights() {
  auto result = Weights::same;
  for (auto& entry : entries_) {
    auto* value = entry_of(entry);
    if (value == entry.value.ptr() &&
        (!entry.array_id || nb::inst_ptr<mx::array>(value)->id() == entry.array_id)) {
      continue;
    }
    auto* a = value ? as_array(value) : nullptr;
    if (a && a->is_tracer()) {
      return Weights::traced;
    }
    result = Weights::changed;
  }
  return result;
}

nb::object Runner::decline(std::string why) {
  reason = std::move(why);
  return nb::none();
}

Graph Runner::capture_step(Key key) {
  auto [batch, tokens, dtype, padded, device] = key;
  int capacity = (tokens / cache_step_ + 1) * cache_step_;
  Arrays examples{mx::zeros({batch, tokens}, mx::Dtype(dtype, 4)), mx::array(0, mx::int32)};
  if (padded) {
    examples.push_back(mx::zeros({batch}, mx::int32));
  }
  size_t first_buffer = examples.size();
  for (auto& [shape, type] : buffers_) {
    examples.push_back(
        mx::zeros({batch, static_cast<int>(shape[0]), capacity, static_cast<int>(shape[1])}, type));
  }
  Graph graph = trace(
      [&, padded = padded](const Arrays& arrays) {
        return nb::cast<Arrays>(trace_step_(nb::cast(arrays), padded));
      },
      examples);
  for (size_t i = first_buffer; i < graph.inputs.size(); ++i) {
    graph[graph.inputs[i].node].attrs.set("varies", int64_t{1});
  }
  graph[graph.inputs[0].node].attrs.set("rows", int64_t{batch} * tokens);
  graph[graph.inputs[1].node].attrs.set("host", int64_t{1});
  return graph;
}

Graph Runner::rewritten_step(Key key, RewriteReport& report, std::string* text) {
  OnCpu while_tracing;
  Graph graph = capture_step(key);
  if (text) {
    *text += "== captured ==\n" + to_string(graph);
  }
  report = rewrite(graph, options_);
  if (text) {
    *text += "\n== rewritten ==\n" + to_string(graph);
  }
  return graph;
}

std::shared_ptr<Step> Runner::find_step(Key key) {
  if (auto it = steps_.find(key); it != steps_.end()) {
    it->second.last_use = ++uses_;
    return it->second.step;
  }
  auto start = std::chrono::steady_clock::now();
  RewriteReport report;
  std::vector<std::string> why;
  std::shared_ptr<Step> step;
  try {
    auto target = default_target();
    if (mx::default_device() == mx::Device::gpu && !target) {
      fail("zmlx", cuda::why_not(), ".");
    }
    Graph graph = rewritten_step(key, report);
    step = Step::make(graph, std::get<1>(key) > 1, why, target);
    device = target ? "cuda sm_" + std::to_string(target->architecture) : "cpu";
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) {
      throw;
    }
    reasons = {"the model cannot be captured: " + nb::cast<std::string>(nb::str(error.value()))};
    return nullptr;
  } catch (const std::exception& error) {
    reasons = {std::string("the model cannot be captured: ") + error.what()};
    return nullptr;
  }
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report_ = report;
  reasons = why;
  bytes_per_run = launches = 0;
  if (step) {
    for (auto* plan : step->plans()) {
      bytes_per_run += traffic(*plan);
      launches += launch_count(*plan);
    }
  }
  auto is_prompt = [](auto& entry) { return std::get<1>(entry.first) > 1; };
  if (static_cast<size_t>(std::count_if(steps_.begin(), steps_.end(), is_prompt)) >=
      kept_prompt_steps) {
    // Decode steps stay; of the prompts the one goes that was not used for longest.
    steps_.erase(std::min_element(steps_.begin(), steps_.end(), [&](auto& a, auto& b) {
      return std::make_pair(!is_prompt(a), a.second.last_use) <
          std::make_pair(!is_prompt(b), b.second.last_use);
    }));
  }
  steps_.emplace(key, KnownStep{step, ++uses_});
  return step;
}

nb::object Runner::call(nb::handle tokens_object, nb::handle cache_object) {
  auto* tokens = as_array(tokens_object);
  if (!tokens || tokens->ndim() != 2 || tokens->size() == 0 ||
      !mx::issubdtype(tokens->dtype(), mx::integer) || tokens->itemsize() != 4) {
    return decline("token ids must be a 32-bit integer array of shape (batch, tokens)");
  }
  if (tokens->is_tracer()) {
    return decline("called inside a transformation");
  }
  if (mx::default_device() == mx::Device::gpu && !cuda::why_not().empty()) {
    return decline("the default device is a GPU: " + cuda::why_not());
  }
  int batch = tokens->shape(0), count = tokens->shape(1);

  std::vector<CacheView> caches;
  bool padded = false;
  std::optional<mx::array> positions;
  long offset = 0; // the row that the first token's key goes to
  if (!cache_object.is_none()) {
    if (!nb::isinstance<nb::list>(cache_object) || nb::len(cache_object) * 2 != buffers_.size()) {
      return decline("the cache must be a list with one KVCache a layer");
    }
    for (nb::handle cache : nb::borrow<nb::list>(cache_object)) {
      if (caches.empty()) {
        padded = cache.type().ptr() == batch_cache_type_.ptr();
      }
      if (cache.type().ptr() != (padded ? batch_cache_type_ : cache_type_).ptr()) {
        return decline("cache type " + nb::cast<std::string>(cache.type().attr("__name__")));
      }
      if (!caches.empty() && (cache.is(caches.back().cache) || cache.is(caches.front().cache))) {
        return decline("one cache object serves several layers");
      }
      auto offset_object = cache.attr(padded ? index_name_ : offset_name_);
      long this_offset =
          PyLong_Check(offset_object.ptr()) ? PyLong_AsLong(offset_object.ptr()) : -1;
      if (this_offset < 0 || (!caches.empty() && this_offset != offset)) {
        return decline("the caches' offsets differ");
      }
      offset = this_offset;
      if (padded && caches.empty()) {
        // The caches of one batch have equal positions, each in an array of its own.
        auto object = cache.attr(offset_name_);
        auto* a = as_array(object);
        if (!a || a->shape() != mx::Shape{batch} || a->dtype() != mx::int32) {
          return decline("a batch cache needs one int32 offset a sequence");
        }
        positions = *a;
      }
      caches.push_back({nb::borrow(cache), cache.attr(keys_name_), cache.attr(values_name_)});
    }
  }

  Arrays inputs{*tokens, mx::array(static_cast<int>(offset), mx::int32)};
  if (positions) {
    inputs.push_back(*positions);
  }
  std::vector<mx::Shape> shapes;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    auto& [type, dtype] = buffers_[i];
    int heads = static_cast<int>(type[0]), size = static_cast<int>(type[1]);
    nb::handle held =
        caches.empty() ? nb::none() : (i % 2 ? caches[i / 2].values : caches[i / 2].keys);
    int capacity = 0;
    if (held.is_none()) {
      if (offset != 0) {
        return decline("a cache has an offset but no keys");
      }
      const float* none = nullptr;
      inputs.emplace_back(none, mx::Shape{batch, heads, 0, size}, dtype);
    } else {
      auto* a = as_array(held);
      if (!a || a->ndim() != 4 || a->shape(1) != heads || a->shape(3) != size) {
        return decline("a cache does not have the shape of this model");
      }
      if (a->shape(0) != batch) {
        fail(
            "zmlx",
            "the cache holds ",
            a->shape(0),
            " sequences but the tokens are of ",
            batch,
            ".");
      }
      if (a->dtype() != dtype) {
        return decline("a cache does not have the model's dtype");
      }
      capacity = a->shape(2);
      if (capacity < offset) {
        fail("zmlx", "a cache holds ", capacity, " tokens but its offset is ", offset, ".");
      }
      inputs.push_back(*a);
    }
    int grown = caches.empty()
        ? count
        : grown_capacity(capacity, static_cast<int>(offset), count, cache_step_);
    shapes.push_back({batch, heads, grown, size});
  }

  switch (check_weights()) {
    case Weights::traced:
      return decline("the weights are being traced");
    case Weights::changed:
      steps_.clear();
      read_entries();
      break;
    case Weights::same:
      break;
  }
  auto step = find_step({batch, count, tokens->dtype().val(), padded, mx::default_device().type});
  if (!step) {
    return decline(reasons.empty() ? "the step has no plan" : reasons.front());
  }

  Arrays outputs = (*step)(inputs, shapes, {});
  auto new_offset = nb::int_(offset + count);
  // The next step has it as an input, so that it is evaluated with that step and no chain grows.
  if (positions) {
    positions = mx::add(*positions, mx::array(count, mx::int32));
  }
  for (size_t i = 0; i < caches.size(); ++i) {
    caches[i].cache.attr(keys_name_) = nb::cast(std::move(outputs[1 + 2 * i]));
    caches[i].cache.attr(values_name_) = nb::cast(std::move(outputs[2 + 2 * i]));
    if (padded) {
      caches[i].cache.attr(index_name_) = new_offset;
      caches[i].cache.attr(offset_name_) = nb::cast(*positions);
    } else {
      caches[i].cache.attr(offset_name_) = new_offset;
    }
  }
  return nb::cast(std::move(outputs[0]));
}

bool Runner::prepare(int batch, int tokens, bool padded) {
  return find_step({batch, tokens, mx::int32.val(), padded, mx::default_device().type}) != nullptr;
}

std::string Runner::explain(int batch, int tokens, bool padded, const std::string& target) {
  if (!target.empty() && target != "cpu" && target != "cuda") {
    fail("explain", "target must be 'cpu' or 'cuda' but is '", target, "'.");
  }
  std::optional<cuda::Device> device;
  if (target == "cuda") {
    device = hopper;
  } else if (target.empty()) {
    device = default_target();
  }
  std::string text;
  RewriteReport report;
  Graph graph = rewritten_step(
      {batch, tokens, mx::int32.val(), padded, mx::default_device().type}, report, &text);
  text += "\n== plan ==\n";
  std::vector<std::string> why;
  auto plans = plan_parts(split_step(graph, tokens > 1), why, device);
  for (auto& line : why) {
    text += "not planned: " + line + "\n";
  }
  for (auto& plan : plans) {
    text += to_string(*plan);
  }
  return text;
}

int Runner::traverse(visitproc visit, void* arg) {
  Py_VISIT(trace_step_.ptr());
  Py_VISIT(cache_type_.ptr());
  Py_VISIT(batch_cache_type_.ptr());
  for (auto& entry : entries_) {
    Py_VISIT(entry.container.ptr());
    Py_VISIT(entry.value.ptr());
  }
  return 0;
}

void Runner::clear() {
  trace_step_.reset();
  cache_type_.reset();
  batch_cache_type_.reset();
  entries_.clear();
}

} // namespace zmlx
