// zmlx/kernel/lang/derive.cpp: reverse-mode differentiation over the table's rows.
#include "zmlx/kernel/lang/derive.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

const std::vector<std::string> row_names = {"a", "b", "c", "y", "g"};

/// The derivative that a table's row gives, parsed on first use.
const Expr& parsed(const void* row, size_t arg, const char* text) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, size_t>, Expr> known;
  std::lock_guard lock(mutex);
  auto key = std::pair(row, arg);
  auto it = known.find(key);
  if (it == known.end()) {
    it = known.emplace(key, parse({text, row_names})).first;
  }
  return it->second;
}

bool is_call(const Expr& expr, std::string_view name) {
  return expr->kind == Kind::call && expr->function->name == name;
}

Expr folded(const Node& node) {
  double args[3] = {};
  bool whole = true;
  for (size_t i = 0; i < node.args.size(); ++i) {
    args[i] = node.args[i]->value;
    whole = whole && node.args[i]->kind != Kind::real;
  }
  double value = node.function->fold(args);
  switch (node.function->typing) {
    case Typing::comparison:
    case Typing::logical:
      return value != 0;
    case Typing::floating:
      return value;
    default:
      return whole ? integer(value) : Expr(value);
  }
}

/// One node whose arguments are simplified already.
Expr simplified(const Expr& expr) {
  auto& args = expr->args;
  if (expr->kind != Kind::call) {
    return expr;
  }
  std::string_view name = expr->function->name;
  if (name == "select" && is_constant(args[0])) {
    return args[0]->value != 0 ? args[1] : args[2];
  }
  if (std::all_of(args.begin(), args.end(), [](auto& arg) { return is_constant(arg); })) {
    return folded(*expr);
  }
  if (name == "mul" && is_constant(args[0], 1)) {
    return args[1];
  }
  if ((name == "mul" || name == "div" || name == "pow") && is_constant(args[1], 1)) {
    return args[0];
  }
  if (name == "add" && is_constant(args[0], 0)) {
    return args[1];
  }
  if ((name == "add" || name == "sub") && is_constant(args[1], 0)) {
    return args[0];
  }
  if (name == "neg" && is_call(args[0], "neg")) {
    return args[0]->args[0];
  }
  return expr;
}

} // namespace

Expr simplify(const Expr& root) {
  std::unordered_map<const Node*, Expr> done;
  for (auto* node : topological({root})) {
    Node copy = *node;
    for (auto& arg : copy.args) {
      arg = done.at(arg.get());
    }
    done.emplace(node, simplified(Expr(std::make_shared<const Node>(std::move(copy)))));
  }
  return done.at(root.get());
}

namespace {

/// Which nodes have one value for a row.
class Levels {
 public:
  explicit Levels(const std::vector<std::string>& rows) : rows_(rows) {}

  bool is_row(const Expr& root) {
    std::vector<const Node*> stack;
    if (!known_.count(root.get())) {
      kept_.push_back(root); // an address must not be used again
      stack.push_back(root.get());
    }
    while (!stack.empty()) {
      auto* node = stack.back();
      auto before = stack.size();
      for (auto& arg : node->args) {
        if (!known_.count(arg.get())) {
          stack.push_back(arg.get());
        }
      }
      if (stack.size() == before) {
        known_.emplace(node, of(*node));
        stack.pop_back();
      }
    }
    return known_.at(root.get());
  }

 private:
  bool of(const Node& node) const {
    if (node.kind == Kind::call || node.kind == Kind::cast) {
      return std::all_of(
          node.args.begin(), node.args.end(), [&](auto& arg) { return known_.at(arg.get()); });
    }
    return node.kind != Kind::input ||
        std::find(rows_.begin(), rows_.end(), node.name) != rows_.end();
  }

  const std::vector<std::string>& rows_;
  std::unordered_map<const Node*, bool> known_;
  std::vector<Expr> kept_;
};

/// What reaches a node from those that use it.
struct Adjoint {
  std::optional<Expr> direct;
  std::optional<Expr> elements; // of a value for a row: a part from each element, to be added up
};

class Reverse {
 public:
  Reverse(
      const std::vector<Expr>& outputs,
      const std::vector<Expr>& cotangents,
      const std::vector<std::string>& rows)
      : levels_(rows), order_(topological(outputs)) {
    for (auto& output : outputs) {
      handles_.emplace(output.get(), output);
    }
    for (auto* node : order_) {
      for (auto& arg : node->args) {
        handles_.emplace(arg.get(), arg);
      }
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      add(outputs[i], cotangents[i], false);
    }
    for (auto it = order_.rbegin(); it != order_.rend(); ++it) {
      if (adjoints_.count(*it)) {
        visit(handles_.at(*it), total(*it));
      }
    }
  }

  std::map<std::string, Expr> found; // gradients of inputs

 private:
  void add(const Expr& to, const Expr& g, bool an_element) {
    auto& adjoint = adjoints_[to.get()];
    auto& part = an_element && levels_.is_row(to) ? adjoint.elements : adjoint.direct;
    part = part ? *part + g : g;
  }

  Expr total(const Node* node) {
    auto& [direct, elements] = adjoints_.at(node);
    if (!elements) {
      return *direct;
    }
    Expr sum = levels_.is_row(*elements) ? *elements * row_size() : row_sum(*elements);
    return direct ? *direct + sum : sum;
  }

  void visit(const Expr& node, const Expr& g) {
    if (node->kind == Kind::input) {
      auto [place, fresh] = found.emplace(node->name, g);
      if (!fresh) {
        place->second = place->second + g;
      }
    } else if (node->kind == Kind::cast && is_floating(node->dtype)) {
      add(node->args[0], g, !levels_.is_row(node));
    } else if (node->kind == Kind::reduce) {
      auto& derivative = parsed(node->reduction, 0, node->reduction->derivative);
      add(node->args[0], substitute(derivative, row_names, {node->args[0], 0, 0, node, g}), true);
    } else if (node->kind == Kind::fold) {
      fail("kernel", "a loop over a row whose update is no reduction has no gradient.");
    } else if (node->kind == Kind::call) {
      std::vector<Expr> values = node->args;
      values.resize(3, Expr(0));
      values.push_back(node);
      values.push_back(g);
      for (size_t i = 0; i < node->args.size(); ++i) {
        auto* text = node->function->derivative[i];
        if (text && !is_constant(node->args[i])) {
          auto& derivative = parsed(node->function, i, text);
          add(node->args[i], substitute(derivative, row_names, values), !levels_.is_row(node));
        }
      }
    }
  }

  Levels levels_;
  std::vector<const Node*> order_;
  std::unordered_map<const Node*, Expr> handles_;
  std::unordered_map<const Node*, Adjoint> adjoints_;
};

} // namespace

bool is_row(const Expr& expr, const std::vector<std::string>& rows) {
  return Levels(rows).is_row(expr);
}

std::vector<Expr> gradients(
    const std::vector<Expr>& outputs,
    const std::vector<Expr>& cotangents,
    const std::vector<std::string>& inputs,
    const std::vector<std::string>& rows) {
  Reverse reverse(outputs, cotangents, rows);
  std::vector<Expr> out;
  for (auto& name : inputs) {
    auto it = reverse.found.find(name);
    out.push_back(it == reverse.found.end() ? Expr(0.0) : simplify(it->second));
  }
  return out;
}

std::vector<double> evaluate_row(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<std::vector<double>>& values,
    size_t n) {
  std::unordered_map<const Node*, std::vector<double>> done;
  auto at = [&](const Expr& arg, size_t i) {
    auto& row = done.at(arg.get());
    return row.size() == 1 ? row[0] : row[i];
  };
  for (auto* node : topological({expr})) {
    std::vector<double> row{node->value};
    if (node->kind == Kind::input) {
      auto it = std::find(names.begin(), names.end(), node->name);
      row = values.at(static_cast<size_t>(it - names.begin()));
    } else if (node->kind == Kind::row_size) {
      row = {static_cast<double>(n)};
    } else if (node->kind == Kind::cast) {
      row = done.at(node->args[0].get());
    } else if (node->kind == Kind::reduce) {
      row = {node->reduction->start};
      for (size_t i = 0; i < n; ++i) {
        row[0] = node->reduction->fold(row[0], at(node->args[0], i));
      }
      row[0] /= node->reduction->name == std::string_view("mean") ? static_cast<double>(n) : 1;
    } else if (node->kind == Kind::fold) {
      row = {at(node->args[0], 0)};
      for (size_t i = 0; i < n; ++i) {
        std::vector<double> now{row[0]};
        for (size_t k = 1; k < node->args.size(); ++k) {
          now.push_back(at(node->args[k], i));
        }
        row[0] = evaluate(node->loop->update, node->loop->names, now);
      }
    } else if (node->kind == Kind::call) {
      size_t length = 1;
      for (auto& arg : node->args) {
        length = std::max(length, done.at(arg.get()).size());
      }
      row.resize(length);
      for (size_t i = 0; i < length; ++i) {
        double args[3] = {};
        for (size_t k = 0; k < node->args.size(); ++k) {
          args[k] = at(node->args[k], i);
        }
        row[i] = node->function->fold(args);
      }
    }
    done.emplace(node, std::move(row));
  }
  return done.at(expr.get());
}

double evaluate(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<double>& values) {
  std::vector<std::vector<double>> rows;
  for (double value : values) {
    rows.push_back({value});
  }
  return evaluate_row(expr, names, rows, 1)[0];
}

} // namespace zmlx::lang
