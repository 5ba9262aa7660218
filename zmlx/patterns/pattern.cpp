// zmlx/patterns/pattern.cpp: the registry of patterns.
#include "zmlx/patterns/pattern.h"

#include <algorithm>
#include <deque>
#include <tuple>

#include "zmlx/runtime/fused.h"

namespace zmlx {
namespace {

std::deque<Pattern>& storage() {
  static std::deque<Pattern> patterns;
  return patterns;
}

} // namespace

const std::vector<const Pattern*>& all_patterns() {
  static const std::vector<const Pattern*> sorted = [] {
    std::vector<const Pattern*> list;
    for (auto& pattern : storage()) {
      list.push_back(&pattern);
    }
    std::sort(list.begin(), list.end(), [](auto* a, auto* b) {
      return std::tie(a->stage, a->name) < std::tie(b->stage, b->name);
    });
    return list;
  }();
  return sorted;
}

PatternBuilder::PatternBuilder(std::string name) : pattern_(storage().emplace_back()) {
  pattern_.name = std::move(name);
}

PatternBuilder& PatternBuilder::stage(int number) {
  pattern_.stage = number;
  return *this;
}

PatternBuilder& PatternBuilder::find(Build fn) {
  pattern_.find = std::move(fn);
  return *this;
}

PatternBuilder& PatternBuilder::fires(std::function<std::vector<Example>()> examples) {
  pattern_.examples = std::move(examples);
  return *this;
}

PatternBuilder& PatternBuilder::attrs(decltype(Pattern::attrs) fn) {
  pattern_.attrs = std::move(fn);
  return *this;
}

PatternBuilder& PatternBuilder::put(Build fn) {
  pattern_.put = std::move(fn);
  return *this;
}

PatternBuilder& PatternBuilder::keeps(std::string name, Build build, std::function<Example()> on) {
  pattern_.keeps.push_back({std::move(name), std::move(build), std::move(on)});
  return *this;
}

Arrays call(std::string_view op, const Arrays& inputs, const Attrs& attrs) {
  return node(op_named(op), inputs, attrs);
}

} // namespace zmlx
