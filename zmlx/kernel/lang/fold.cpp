// zmlx/kernel/lang/fold.cpp: an update taken apart along the path from its root to the accumulator.
#include "zmlx/kernel/lang/fold.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>

#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

struct Foldable {
  std::string_view function;
  const char* reduction;
  /// A term on the other side of the accumulator, as it is reduced.
  Expr (*term)(const Expr& f);
};
const Foldable rows[] = {
    {"add", "row_sum", [](const Expr& f) { return f; }},
    {"sub", "row_sum", [](const Expr& f) { return -f; }},
    {"mul", "row_prod", [](const Expr& f) { return f; }},
    {"max", "row_max", [](const Expr& f) { return f; }},
    {"min", "row_min", [](const Expr& f) { return f; }},
};

const Foldable* row_of(const Expr& expr) {
  for (auto& row : rows) {
    if (expr->kind == Kind::call && row.function == expr->function->name) {
      return &row;
    }
  }
  return nullptr;
}

bool uses(const Expr& expr, const std::string& name) {
  auto names = inputs_of({expr});
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_input(const Expr& expr, const std::string& name) {
  return expr->kind == Kind::input && expr->name == name;
}

/// `a > b ? a : b` and its like as max(a, b) or min(a, b); other expressions as they are.
Expr chosen(const Expr& expr) {
  auto is = [](const Expr& e, std::string_view name) {
    return e->kind == Kind::call && e->function->name == name;
  };
  if (!is(expr, "select")) {
    return expr;
  }
  auto& condition = expr->args[0];
  bool greater = is(condition, "gt") || is(condition, "ge");
  if (!greater && !is(condition, "lt") && !is(condition, "le")) {
    return expr;
  }
  auto same = [](const Expr& a, const Expr& b) {
    return a.get() == b.get() || (a->kind == Kind::input && is_input(b, a->name));
  };
  auto &left = condition->args[0], &right = condition->args[1];
  bool straight = same(left, expr->args[1]) && same(right, expr->args[2]);
  bool crossed = same(left, expr->args[2]) && same(right, expr->args[1]);
  if (!straight && !crossed) {
    return expr;
  }
  return call(greater == straight ? "max" : "min", {left, right});
}

/// A loop of an update's largest parts without `acc`.
Expr loop_of(const Expr& init, const Expr& update, const std::string& acc) {
  std::vector<Expr> args{init};
  Loop loop{update, {acc}};
  std::unordered_map<const Node*, Expr> done;
  auto walk = [&](auto& self, const Expr& expr) -> Expr {
    if (is_input(expr, acc) || is_constant(expr)) {
      return expr;
    }
    if (auto it = done.find(expr.get()); it != done.end()) {
      return it->second;
    }
    Expr out = expr;
    if (uses(expr, acc)) {
      Node node = *expr;
      for (auto& arg : node.args) {
        arg = self(self, arg);
      }
      out = Expr(std::make_shared<const Node>(std::move(node)));
    } else {
      // Texts have no names with a colon.
      loop.names.push_back("part:" + std::to_string(args.size()));
      args.push_back(expr);
      out = input(loop.names.back());
    }
    done.emplace(expr.get(), out);
    return out;
  };
  loop.update = walk(walk, update);
  return fold(std::move(loop), std::move(args));
}

} // namespace

std::optional<Folded> folded(const Expr& init, const Expr& update, const std::string& acc) {
  const Foldable* whole = nullptr;
  std::optional<Expr> terms;
  Expr at = chosen(update);
  while (!is_input(at, acc)) {
    auto* row = row_of(at);
    if (!row || (whole && std::string_view(row->reduction) != whole->reduction)) {
      return {};
    }
    bool left = uses(at->args[0], acc);
    // acc on both sides, or taken away from something, is no reduction.
    if (left == uses(at->args[1], acc) || (!left && row->function == "sub")) {
      return {};
    }
    auto term = row->term(at->args[left ? 1 : 0]);
    whole = whole ? whole : row;
    // Terms of sub were negated, so that all are added.
    auto* joins = row->function == "sub" ? "add" : row->function.data();
    terms = terms ? call(joins, {*terms, term}) : term;
    at = chosen(at->args[left ? 0 : 1]);
  }
  if (!whole) {
    return {};
  }
  auto* joins = whole->function == "sub" ? "add" : whole->function.data();
  auto reduced = call(whole->reduction, {*terms});
  auto start = simplify(init);
  bool neutral = is_constant(start) && start->value == find_reduction(whole->reduction)->start;
  return Folded{whole->reduction, neutral ? reduced : call(joins, {init, reduced})};
}

std::string combination(const Expr& combine, const std::string& a, const std::string& b) {
  Expr at = chosen(combine);
  auto* row = row_of(at);
  bool both = row && row->function != "sub" &&
      ((is_input(at->args[0], a) && is_input(at->args[1], b)) ||
       (is_input(at->args[0], b) && is_input(at->args[1], a)));
  return both ? row->reduction : "";
}

Expr parse_folds(const Source& source, const std::vector<FoldText>& folds) {
  std::vector<std::string> names{"D"};
  std::vector<Expr> values{row_size()};
  auto parsed = [&](const std::string& text, const std::vector<std::string>& others) {
    auto part = source;
    part.text = text;
    part.inputs.insert(part.inputs.end(), names.begin(), names.end());
    part.inputs.insert(part.inputs.end(), others.begin(), others.end());
    return substitute(parse(part), names, values);
  };
  for (auto& fold : folds) {
    auto init = parsed(fold.init, {});
    auto update = parsed(fold.update, {fold.acc});
    auto value = folded(init, update, fold.acc);
    names.push_back(fold.name);
    if (!value) {
      values.push_back(loop_of(init, update, fold.acc));
      continue;
    }
    if (!fold.combine.empty() &&
        combination(parsed(fold.combine, {"a", "b"}), "a", "b") != value->reduction) {
      fail(
          source.where.c_str(),
          "reduce must combine values as update does, '",
          fold.update,
          "', but got '",
          fold.combine,
          "'.");
    }
    values.push_back(value->value);
  }
  return parsed(source.text, {});
}

} // namespace zmlx::lang
