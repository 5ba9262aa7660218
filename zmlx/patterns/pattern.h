// zmlx/patterns/pattern.h: a rewrite rule: `find` is plain MLX code, `put` is what takes its place.
// One file a pattern.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "zmlx/graph/match.h"
#include "zmlx/ops/op.h"

namespace zmlx {

/// MLX code (and our ops) on the variables. The number of variables may depend on the attributes.
using Build = std::function<Arrays(const Arrays& variables, const Attrs& attrs)>;

/// Variables and attributes on which a build can be traced.
struct Example {
  std::string name;
  Arrays variables;
  Attrs attrs;
};

/// A graph on which a pattern must not fire.
struct Keep {
  std::string name;
  Build build;
  std::function<Example()> on;
};

struct Pattern {
  std::string name;
  /// Stage 0 undoes MLX's decomposition (recompose), later stages build on what earlier ones put.
  /// Patterns of one stage do not see each other's results.
  int stage = 0;
  /// The left side, with one or more roots.
  Build find;
  /// What `find` is traced on for the loose match: one example a structural variant (float32 builds
  /// no casts, one token builds no transposes, ...). Each is also a test: the pattern fires on it
  /// and keeps its value.
  std::function<std::vector<Example>()> examples;
  /// Attributes for the proof, read from a loose match; nothing means no match. `find` is traced
  /// again with them on the bound types, and the rewrite happens only if that gives the matched
  /// graph node by node.
  std::function<std::optional<Attrs>(const Match&)> attrs;
  /// The right side; its outputs replace the roots in order.
  Build put;
  std::vector<Keep> keeps;
};

/// All patterns, by stage, then by name.
const std::vector<const Pattern*>& all_patterns();

/// Builds and registers a pattern; see ZMLX_PATTERN.
class PatternBuilder {
 public:
  explicit PatternBuilder(std::string name);
  PatternBuilder& stage(int number);
  PatternBuilder& find(Build fn);
  PatternBuilder& fires(std::function<std::vector<Example>()> examples);
  PatternBuilder& attrs(decltype(Pattern::attrs) fn);
  PatternBuilder& put(Build fn);
  PatternBuilder& keeps(std::string name, Build build, std::function<Example()> on);

 private:
  Pattern& pattern_;
};

/// One node of the op of that name, for use in `find` and `put`.
Arrays call(std::string_view op, const Arrays& inputs, const Attrs& attrs);

} // namespace zmlx

/// Registers the pattern `name` from its own file:
/// ZMLX_PATTERN(rms_norm).find(...).fires(...).attrs(...).put(...);
#define ZMLX_PATTERN(name) \
  static const ::zmlx::PatternBuilder registered_##name = ::zmlx::PatternBuilder(#name)
