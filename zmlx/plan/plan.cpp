// zmlx/plan/plan.cpp: from a rewritten graph to launches and places.
#include "zmlx/plan/plan.h"

#include <algorithm>
#include <iomanip>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include "zmlx/plan/arena.h"

namespace zmlx {
namespace {

using Key = std::pair<int, int>; // node, output

Key key(Value v) {
  return {v.node, v.output};
}

/// Bytes that one member moves in about the time of a barrier. Rows count again: they are
/// arithmetic.
constexpr size_t solo_bytes = 64 * 1024;

/// Builds one plan; `reasons` says what stood in the way.
class Planner {
 public:
  Planner(const Graph& graph, const std::optional<cuda::Device>& device) : graph_(graph) {
    plan_.device = device;
  }

  PlanResult run() {
    find_roots();
    add_launches();
    bind_outputs();
    if (!reasons_.empty()) {
      return {nullptr, {reasons_.begin(), reasons_.end()}};
    }
    place_arena();
    fill_places();
    return {std::make_shared<const Plan>(std::move(plan_)), {}};
  }

 private:
  /// The value whose memory `v` is: through reshapes, and from an in-place output to what it
  /// overwrites.
  Value root(Value v) const {
    auto it = roots_.find(key(v));
    return it == roots_.end() ? v : it->second;
  }

  void find_roots() {
    for (int id = 0; id < graph_.size(); ++id) {
      auto& node = graph_[id];
      if (node.kind == "Reshape") {
        roots_[{id, 0}] = root(node.inputs[0]);
      } else if (auto* op = find_op(node.kind)) {
        for (auto [output, input] : op->in_place) {
          size_t from = in_place_input(input, node.inputs.size());
          roots_[{id, output}] = root(node.inputs[from]);
        }
      }
    }
  }

  void add_launches() {
    for (int id = 0; id < graph_.size(); ++id) {
      auto& node = graph_[id];
      if (node.kind == "input" || node.kind == "constant" || node.kind == "Reshape") {
        continue;
      }
      auto* op = find_op(node.kind);
      const char* target = plan_.device ? "CUDA" : "CPU";
      if (!op || !(plan_.device ? static_cast<bool>(op->cuda) : static_cast<bool>(op->cpu))) {
        reasons_.insert(
            node.kind + " has no " + target + " kernel (" + to_string(node.outputs[0]) + ")");
        continue;
      }
      Launch launch{op, node.attrs, {}, {}, {}, {}, {}, node.outputs};
      for (auto v : node.inputs) {
        launch.in_types.push_back(graph_.type(v));
      }
      if (plan_.device) {
        launch.cuda = op->cuda(launch.in_types, launch.out_types, node.attrs, *plan_.device);
      } else {
        launch.kernel = op->cpu(launch.in_types, launch.out_types, node.attrs);
      }
      if (!launch.kernel.run && !launch.cuda) {
        reasons_.insert(
            node.kind + " has no " + target + " kernel for " + to_string(node.outputs[0]) + " {" +
            to_string(node.attrs) + "}");
        continue;
      }
      int step = static_cast<int>(plan_.launches.size());
      for (auto v : node.inputs) {
        touch(root(v), step);
      }
      for (int i = 0; i < static_cast<int>(node.outputs.size()); ++i) {
        touch(root({id, i}), step);
      }
      for (auto [output, input] : op->in_place) {
        overwritten_[key(root({id, output}))] = step;
      }
      plan_.scratch_bytes =
          std::max({plan_.scratch_bytes, launch.kernel.scratch, launch.cuda.scratch});
      plan_.launches.push_back(std::move(launch));
      launched_.push_back(id);
    }
  }

  void touch(Value v, int step) {
    auto [it, is_new] = uses_.try_emplace(key(v), step, step);
    it->second.second = step;
  }

  void bind_outputs() {
    for (auto v : graph_.inputs) {
      plan_.inputs.push_back(graph_.type(v));
      auto& attrs = graph_[v.node].attrs;
      plan_.varies.push_back(attrs.integer("varies", 0) != 0);
      plan_.on_host.push_back(attrs.integer("host", 0) != 0);
      plan_.rows = std::max(plan_.rows, static_cast<int>(attrs.integer("rows", 0)));
      input_index_[key(v)] = plan_.inputs.size() - 1;
    }
    for (auto v : graph_.outputs) {
      size_t index = plan_.outputs.size();
      plan_.outputs.push_back(graph_.type(v));
      Value from = root(v);
      auto input = input_index_.find(key(from));
      if (graph_[from.node].kind == "constant") {
        reasons_.insert("an output is a constant");
      } else if (input != input_index_.end() && !overwritten_.contains(key(from))) {
        reasons_.insert("an output is an input, unchanged");
      } else if (!output_index_.emplace(key(from), index).second) {
        reasons_.insert("two outputs share memory");
      } else if (input != input_index_.end()) {
        plan_.states.push_back({static_cast<int>(index), static_cast<int>(input->second)});
      }
    }
    for (auto& [value, step] : overwritten_) {
      if (!output_index_.contains(value) && input_index_.contains(value)) {
        reasons_.insert("an input is overwritten but is no output");
      }
      if (graph_[value.first].kind == "constant") {
        reasons_.insert("a constant would be overwritten");
      }
      if (uses_[value].second > step && !in_place_reader(value, step)) {
        reasons_.insert("a value is read after it was overwritten");
      }
    }
  }

  /// Whether all launches after `step` that touch `value` do so through the overwritten result,
  /// never the old value.
  bool in_place_reader(Key value, int step) const {
    for (size_t i = static_cast<size_t>(step) + 1; i < launched_.size(); ++i) {
      for (auto v : graph_[launched_[i]].inputs) {
        if (key(v) == value) {
          return false;
        }
      }
    }
    return true;
  }

  void place_arena() {
    std::vector<Lifetime> lifetimes;
    std::vector<Key> values;
    for (auto& [value, use] : uses_) {
      bool elsewhere = graph_[value.first].kind == "constant" || input_index_.contains(value) ||
          output_index_.contains(value);
      if (!elsewhere) {
        lifetimes.push_back(
            {graph_.type({value.first, value.second}).bytes(), use.first, use.second});
        values.push_back(value);
      }
    }
    auto layout = lay_out(lifetimes);
    for (size_t i = 0; i < values.size(); ++i) {
      arena_[values[i]] = layout.offsets[i];
      plan_.intermediate_bytes += lifetimes[i].bytes;
    }
    plan_.arena_bytes = layout.bytes;
  }

  Place place(Value v) {
    Value from = root(v);
    if (auto it = output_index_.find(key(from)); it != output_index_.end()) {
      return {Place::Kind::output, it->second};
    }
    if (auto it = input_index_.find(key(from)); it != input_index_.end()) {
      return {Place::Kind::input, it->second};
    }
    if (auto& node = graph_[from.node]; node.kind == "constant") {
      auto [it, is_new] = constant_index_.try_emplace(from.node, plan_.constants.size());
      if (is_new) {
        plan_.constants.push_back(node.constant);
      }
      return {Place::Kind::constant, it->second};
    }
    return {Place::Kind::arena, arena_.at(key(from))};
  }

  void fill_places() {
    is_state_.resize(plan_.outputs.size());
    for (auto [output, input] : plan_.states) {
      is_state_[static_cast<size_t>(output)] = true;
    }
    for (size_t i = 0; i < launched_.size(); ++i) {
      auto& node = graph_[launched_[i]];
      for (auto v : node.inputs) {
        plan_.launches[i].in.push_back(place(v));
      }
      for (int k = 0; k < static_cast<int>(node.outputs.size()); ++k) {
        plan_.launches[i].out.push_back(place({launched_[i], k}));
      }
      plan_.launches[i].solo = is_solo(plan_.launches[i]);
    }
  }

  /// What reads a varying input as a whole (attention over the KV buffers) may be any amount of
  /// work.
  bool is_solo(const Launch& launch) const {
    for (size_t i = 0; i < launch.in.size(); ++i) {
      auto place = launch.in[i];
      bool is_buffer = (place.kind == Place::Kind::input && plan_.varies[place.index]) ||
          (place.kind == Place::Kind::output && is_state_[place.index]);
      if (is_buffer && launch.op->in_place.empty()) {
        return false;
      }
    }
    bool is_update = !launch.op->in_place.empty();
    int64_t rows = is_update ? 1 : std::max<int64_t>(1, launch.out_types[0].shape.rows());
    return traffic(launch) * static_cast<size_t>(rows) <= solo_bytes;
  }

  const Graph& graph_;
  Plan plan_;
  std::vector<bool> is_state_; // by output
  std::set<std::string> reasons_;
  std::vector<int> launched_; // node of each launch
  std::map<Key, Value> roots_;
  std::map<Key, std::pair<int, int>> uses_; // first and last launch that touches a value
  std::map<Key, int> overwritten_; // launch that overwrites a value
  std::map<Key, size_t> input_index_;
  std::map<Key, size_t> output_index_;
  std::map<Key, size_t> arena_;
  std::map<int, size_t> constant_index_;
};

const char* name_of(Place::Kind kind) {
  static constexpr const char* names[] = {"constant", "input", "output", "arena"};
  return names[static_cast<size_t>(kind)];
}

} // namespace

PlanResult make_plan(const Graph& graph, const std::optional<cuda::Device>& device) {
  return Planner(graph, device).run();
}

size_t launch_count(const Plan& plan) {
  size_t count = 0;
  for (auto& launch : plan.launches) {
    count += plan.device ? launch.cuda.launches.size() : 1;
  }
  return count;
}

size_t traffic(const Launch& launch) {
  if (launch.op->traffic) {
    return launch.op->traffic(launch.in_types, launch.out_types, launch.attrs);
  }
  auto add = [](size_t sum, const Type& type) { return sum + type.bytes(); };
  return std::accumulate(
      launch.out_types.begin(),
      launch.out_types.end(),
      std::accumulate(launch.in_types.begin(), launch.in_types.end(), size_t{0}, add),
      add);
}

size_t traffic(const Plan& plan) {
  return std::accumulate(
      plan.launches.begin(), plan.launches.end(), size_t{0}, [](size_t sum, auto& launch) {
        return sum + traffic(launch);
      });
}

std::string to_string(const Plan& plan) {
  std::ostringstream out;
  out << launch_count(plan) << " launches, arena " << plan.arena_bytes << " bytes ("
      << plan.intermediate_bytes << " without sharing), scratch " << plan.scratch_bytes
      << " bytes, " << traffic(plan) << " bytes moved a run"
      << (plan.device ? "\n" : "; * one thread alone\n");
  for (size_t i = 0; i < plan.launches.size(); ++i) {
    auto& launch = plan.launches[i];
    out << std::setw(5) << i << "  " << std::left << std::setw(16) << launch.op->name << std::right
        << std::setw(12) << traffic(launch) << (launch.solo && !plan.device ? " B* " : " B  ");
    for (size_t k = 0; k < launch.out.size(); ++k) {
      out << (k ? ", " : "") << to_string(launch.out_types[k]) << " -> "
          << name_of(launch.out[k].kind) << '+' << launch.out[k].index;
    }
    out << "  {" << to_string(launch.attrs) << "}\n";
    for (auto& kernel : launch.cuda.launches) {
      out << "         " << kernel.source << ": " << kernel.kernel << "  grid "
          << to_string(Shape(kernel.grid.begin(), kernel.grid.end())) << " block "
          << to_string(Shape(kernel.block.begin(), kernel.block.end())) << " shared "
          << kernel.shared << '\n';
    }
  }
  return out.str();
}

} // namespace zmlx
