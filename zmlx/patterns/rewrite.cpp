// zmlx/patterns/rewrite.cpp: the driver: match loosely, prove by tracing again, put, until a stage
// finds nothing more.
#include "zmlx/graph/rewrite.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_set>

#include "mlx/ops.h"
#include "zmlx/graph/canonicalise.h"
#include "zmlx/graph/capture.h"
#include "zmlx/ops/weight.h"
#include "zmlx/patterns/linears.h"
#include "zmlx/patterns/pattern.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

/// A pattern traced for given types and attributes: what the graph must be, and what takes its
/// place.
struct Proof {
  Attrs attrs;
  Types types;
  std::unique_ptr<Sought> exact; // null when the pattern does not apply to these types
  Graph put;
};

struct Prepared {
  const Pattern* pattern;
  std::vector<Sought> examples;
  std::vector<Proof> proofs;
};

Graph trace_canonical(const Build& build, const Arrays& variables, const Attrs& attrs) {
  auto graph = trace([&](const Arrays& v) { return build(v, attrs); }, variables);
  canonicalise(graph);
  return graph;
}

// Made on first use and kept: templates and proofs depend on no model. Guarded by the mutex of
// rewrite().
std::vector<Prepared>& prepared() {
  static std::vector<Prepared> list = [] {
    std::vector<Prepared> all;
    for (auto* pattern : all_patterns()) {
      Prepared p{pattern, {}, {}};
      for (auto& example : pattern->examples()) {
        p.examples.emplace_back(trace_canonical(pattern->find, example.variables, example.attrs));
      }
      // The larger variant first: the smaller may be a part of it.
      std::stable_sort(p.examples.begin(), p.examples.end(), [](auto& a, auto& b) {
        return a.graph.size() > b.graph.size();
      });
      all.push_back(std::move(p));
    }
    return all;
  }();
  return list;
}

/// Traces both sides on placeholders. Nothing for types that `find` or `put` refuses.
Proof make_proof(const Pattern& pattern, const Attrs& attrs, const Types& types) {
  Proof proof{attrs, types, nullptr, {}};
  Arrays placeholders;
  for (auto& type : types) {
    placeholders.emplace_back(mlx_shape(type.shape), mlx_dtype(type.dtype), nullptr, Arrays{});
  }
  try {
    auto exact = std::make_unique<Sought>(trace_canonical(pattern.find, placeholders, attrs));
    auto put = [&](const Arrays& v) {
      auto out = pattern.put(v, attrs);
      for (size_t i = 0; i < out.size(); ++i) {
        out[i] = mx::reshape(out[i], mlx_shape(exact->graph.type(exact->roots.at(i)).shape));
      }
      return out;
    };
    proof.put = trace(put, placeholders);
    canonicalise(proof.put);
    bool fits = proof.put.outputs.size() == exact->roots.size();
    for (size_t i = 0; fits && i < exact->roots.size(); ++i) {
      fits = proof.put.type(proof.put.outputs[i]) == exact->graph.type(exact->roots[i]);
    }
    if (fits) {
      proof.exact = std::move(exact);
    }
  } catch (const std::logic_error&) {
  }
  return proof;
}

const Proof& proof_for(Prepared& p, const Attrs& attrs, const Types& types) {
  for (auto& proof : p.proofs) {
    if (proof.types == types && proof.attrs == attrs) {
      return proof;
    }
  }
  // Prompts of every length bring types of their own: forget rather than grow.
  constexpr size_t limit = 256;
  if (p.proofs.size() >= limit) {
    p.proofs.clear();
  }
  return p.proofs.emplace_back(make_proof(*p.pattern, attrs, types));
}

/// A proved match, to be put when the whole graph has been searched.
struct Found {
  Graph put;
  std::vector<Value> variables;
  std::vector<Value> roots;
};

/// One search of the whole graph by the patterns of one stage.
class Round {
 public:
  explicit Round(Graph& graph)
      : graph_(graph), haystack_(graph), consumed_(static_cast<size_t>(graph.size()), false) {}

  int search(Prepared& p) {
    auto before = found_.size();
    for (auto& sought : p.examples) {
      auto& root = sought.graph[sought.roots[static_cast<size_t>(sought.anchor)].node];
      for (int candidate : haystack_.of_kind(root.kind)) {
        if (closed_) {
          break;
        }
        if (!consumed_[static_cast<size_t>(candidate)]) {
          find_match(sought, haystack_, candidate, [&](const Match& match) {
            return accept(p, sought, match);
          });
        }
      }
    }
    return static_cast<int>(found_.size() - before);
  }

  /// Whether a match was turned down that may be good once the others have been put.
  bool again() const {
    return again_;
  }

  /// Puts what was found.
  void apply() {
    std::vector<std::pair<Value, Value>> pairs;
    for (auto& found : found_) {
      auto& put = found.put;
      std::vector<int> id_of(static_cast<size_t>(put.size()), -1);
      auto place = [&](Value v) {
        auto input = std::find(put.inputs.begin(), put.inputs.end(), v);
        return input != put.inputs.end()
            ? found.variables[static_cast<size_t>(input - put.inputs.begin())]
            : Value{id_of[static_cast<size_t>(v.node)], v.output};
      };
      for (int id = 0; id < put.size(); ++id) {
        if (put[id].kind != "input") {
          auto node = put[id];
          std::transform(node.inputs.begin(), node.inputs.end(), node.inputs.begin(), place);
          id_of[static_cast<size_t>(id)] = graph_.add(std::move(node));
        }
      }
      for (size_t i = 0; i < found.roots.size(); ++i) {
        pairs.emplace_back(found.roots[i], place(put.outputs[i]));
      }
    }
    graph_.replace(pairs);
  }

 private:
  bool accept(Prepared& p, const Sought& sought, const Match& match) {
    auto attrs = p.pattern->attrs(match);
    if (!attrs) {
      return false;
    }
    Found found;
    Types types;
    for (size_t i = 0; i < match.variables(); ++i) {
      found.variables.push_back(match.at(sought.graph.inputs[i]));
      types.push_back(match.type(i));
    }
    for (auto root : sought.roots) {
      found.roots.push_back(match.at(root));
    }
    auto& proof = proof_for(p, *attrs, types);
    std::vector<int> nodes;
    bool proved = proof.exact && proof.exact->roots.size() == found.roots.size() &&
        same_graph(*proof.exact, graph_, found.variables, found.roots, nodes);
    if (!proved) {
      return false;
    }
    if (!is_private(*proof.exact, nodes, found.roots) || !is_ordered(found)) {
      again_ = true;
      return false;
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
      if (nodes[i] >= 0 && proof.exact->owned[i]) {
        consumed_[static_cast<size_t>(nodes[i])] = true;
      }
    }
    found.put = proof.put;
    found_.push_back(std::move(found));
    return true;
  }

  /// Whether nobody else needs what the match computes from its first variable, its roots aside,
  /// and no match took it.
  bool is_private(
      const Sought& exact,
      const std::vector<int>& nodes,
      const std::vector<Value>& roots) const {
    auto is_root = [&](Value v) { return std::find(roots.begin(), roots.end(), v) != roots.end(); };
    auto is_inside = [&](int id) {
      return std::find(nodes.begin(), nodes.end(), id) != nodes.end();
    };
    for (size_t i = 0; i < nodes.size(); ++i) {
      int id = nodes[i];
      if (id < 0 || !exact.owned[i]) {
        continue;
      }
      if (consumed_[static_cast<size_t>(id)]) {
        return false;
      }
      for (int user : haystack_.users[static_cast<size_t>(id)]) {
        if (is_inside(user)) {
          continue;
        }
        for (auto v : graph_[user].inputs) {
          if (v.node == id && !is_root(v)) {
            return false;
          }
        }
      }
      if (haystack_.is_output[static_cast<size_t>(id)]) {
        for (auto v : graph_.outputs) {
          if (v.node == id && !is_root(v)) {
            return false;
          }
        }
      }
    }
    return true;
  }

  /// Whether the new node can stand where the first root stood, after all variables. Where ids do
  /// not say so but no variable depends on a root, the match is taken and the round ends: the next
  /// one sees a new order.
  bool is_ordered(const Found& found) {
    int first = graph_.size();
    for (auto v : found.roots) {
      first = std::min(first, v.node);
    }
    std::vector<int> later;
    for (auto v : found.variables) {
      if (v.node > first) {
        later.push_back(v.node);
      }
    }
    if (later.empty()) {
      return true;
    }
    if (!found_.empty()) {
      return false;
    }
    std::unordered_set<int> seen;
    while (!later.empty()) {
      int id = later.back();
      later.pop_back();
      if (id < first || !seen.insert(id).second) {
        continue;
      }
      for (auto v : found.roots) {
        if (v.node == id) {
          return false;
        }
      }
      for (auto v : graph_[id].inputs) {
        later.push_back(v.node);
      }
    }
    closed_ = true;
    again_ = true;
    return true;
  }

  Graph& graph_;
  Haystack haystack_;
  std::vector<bool> consumed_;
  std::vector<Found> found_;
  bool closed_ = false;
  bool again_ = false;
};

class Chosen {
 public:
  explicit Chosen(const RewriteOptions& options) {
    auto known = pattern_names();
    auto check = [&](const std::vector<std::string>& names) {
      for (auto& name : names) {
        if (!std::binary_search(known.begin(), known.end(), name)) {
          fail("rewrite", "there is no pattern named '", name, "'.");
        }
      }
    };
    check(options.include);
    check(options.exclude);
    auto& all = options.include.empty() ? known : options.include;
    names_.insert(all.begin(), all.end());
    for (auto& name : options.exclude) {
      names_.erase(name);
    }
  }
  bool contains(const std::string& name) const {
    return names_.contains(name);
  }

 private:
  std::set<std::string> names_;
};

/// Asks an op that multiplies by weights to round its activations, where it and their format allow
/// it.
void round_activations(Graph& graph, Node& node, const Op& op, RewriteReport& report) {
  if (!node.attrs.has("mode") || !is_floating(graph.type(node.inputs[0]).dtype)) {
    return;
  }
  const auto kind = weight_kind(op.name.c_str(), node.attrs);
  if (op.rounds_activations && kind.fits_int8()) {
    node.attrs.set("activations", std::string("int8"));
    ++report.int8[node.kind];
    if (node.attrs.has("router_mode")) {
      ++report.exact[node.kind + "'s router (" + node.attrs.text("router_mode") + ")"];
    }
  } else {
    ++report.exact[node.kind + " (" + kind.mode + ")"];
  }
}

int count_nodes(const Graph& graph) {
  int n = 0;
  for (int id = 0; id < graph.size(); ++id) {
    n += graph[id].kind != "input" && graph[id].kind != "constant";
  }
  return n;
}

void run_stage(
    Graph& graph,
    int stage,
    const Chosen& chosen,
    const CanonicaliseOptions& canonical,
    RewriteReport& report) {
  for (;;) {
    Round round(graph);
    int fired = 0;
    for (auto& p : prepared()) {
      if (p.pattern->stage == stage && chosen.contains(p.pattern->name)) {
        if (int n = round.search(p)) {
          report.fired[p.pattern->name] += n;
          fired += n;
        }
      }
    }
    if (!fired) {
      return;
    }
    round.apply();
    graph.prune();
    canonicalise(graph, canonical);
    debug_print("stage " + std::to_string(stage), graph);
    if (!round.again()) {
      return;
    }
  }
}

} // namespace

std::vector<std::string> pattern_names() {
  std::vector<std::string> names;
  for (auto& pass : passes) {
    names.emplace_back(pass.name);
  }
  for (auto* pattern : all_patterns()) {
    names.push_back(pattern->name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

RewriteReport rewrite(Graph& graph, const RewriteOptions& options) {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  Chosen chosen(options);
  if (options.activations != "exact" && options.activations != "int8") {
    fail("rewrite", "activations must be exact or int8 but got ", options.activations, ".");
  }
  CanonicaliseOptions canonical{.merge_all = options.merge};
  RewriteReport report;
  report.nodes_before = count_nodes(graph);
  debug_print("captured", graph);
  canonicalise(graph, canonical);
  debug_print("canonicalise", graph);
  int last = all_patterns().empty() ? -1 : all_patterns().back()->stage;
  for (int stage = 0; stage <= last; ++stage) {
    for (auto& pass : passes) {
      if (pass.stage != stage || !chosen.contains(pass.name)) {
        continue;
      }
      if (int n = pass.run(graph)) {
        canonicalise(graph, canonical);
        report.fired[pass.name] += n;
        debug_print(pass.name, graph);
      }
    }
    run_stage(graph, stage, chosen, canonical, report);
  }
  if (options.fold) {
    fold_constants(graph);
    debug_print("fold_constants", graph);
  }
  report.nodes_after = count_nodes(graph);
  for (int id = 0; id < graph.size(); ++id) {
    auto& node = graph[id];
    if (auto* op = find_op(node.kind)) {
      if (options.exact) {
        node.attrs.set("exact", int64_t{1});
      }
      if (options.activations == "int8") {
        round_activations(graph, node, *op, report);
      }
    } else if (node.kind != "input" && node.kind != "constant" && node.kind != "Reshape") {
      ++report.left[node.kind];
    }
  }
  return report;
}

} // namespace zmlx
