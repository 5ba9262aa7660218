// zmlx/kernel/lang/derive.cpp: reverse-mode differentiation over the table's rows.
#include "zmlx/kernel/lang/derive.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

const std::vector<std::string> row_names = {"a", "b", "c", "y", "g"};

/// A row's derivative, parsed on first use.
Expr row_derivative(const Function& function, size_t arg) {
  static std::mutex mutex;
  static std::map<std::pair<const Function*, size_t>, Expr> parsed;
  std::lock_guard lock(mutex);
  auto key = std::pair(&function, arg);
  auto it = parsed.find(key);
  if (it == parsed.end()) {
    it = parsed.emplace(key, parse({function.derivative[arg], row_names})).first;
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

std::vector<Expr> gradients(
    const std::vector<Expr>& outputs,
    const std::vector<Expr>& cotangents,
    const std::vector<std::string>& inputs) {
  std::unordered_map<const Node*, Expr> adjoints;
  auto add = [&](const Node* node, const Expr& g) {
    auto [it, fresh] = adjoints.emplace(node, g);
    if (!fresh) {
      it->second = it->second + g;
    }
  };
  for (size_t i = 0; i < outputs.size(); ++i) {
    add(outputs[i].get(), cotangents[i]);
  }
  std::map<std::string, Expr> found;
  auto order = topological(outputs);
  std::unordered_map<const Node*, Expr> handles;
  for (auto& output : outputs) {
    handles.emplace(output.get(), output);
  }
  for (auto* node : order) {
    for (auto& arg : node->args) {
      handles.emplace(arg.get(), arg);
    }
  }
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    auto* node = *it;
    auto adjoint = adjoints.find(node);
    if (adjoint == adjoints.end()) {
      continue;
    }
    Expr g = adjoint->second;
    if (node->kind == Kind::input) {
      auto [place, fresh] = found.emplace(node->name, g);
      if (!fresh) {
        place->second = place->second + g;
      }
    } else if (node->kind == Kind::cast && is_floating(node->dtype)) {
      add(node->args[0].get(), g);
    } else if (node->kind == Kind::call) {
      std::vector<Expr> values = node->args;
      values.resize(3, Expr(0));
      values.push_back(handles.at(node));
      values.push_back(g);
      for (size_t i = 0; i < node->args.size(); ++i) {
        if (node->function->derivative[i] && !is_constant(node->args[i])) {
          add(node->args[i].get(),
              substitute(row_derivative(*node->function, i), row_names, values));
        }
      }
    }
  }
  std::vector<Expr> out;
  for (auto& name : inputs) {
    auto it = found.find(name);
    out.push_back(it == found.end() ? Expr(0.0) : simplify(it->second));
  }
  return out;
}

double evaluate(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<double>& values) {
  std::unordered_map<const Node*, double> done;
  for (auto* node : topological({expr})) {
    double value = node->value;
    if (node->kind == Kind::input) {
      auto it = std::find(names.begin(), names.end(), node->name);
      value = values.at(static_cast<size_t>(it - names.begin()));
    } else if (node->kind == Kind::cast) {
      value = done.at(node->args[0].get());
    } else if (node->kind == Kind::call) {
      double args[3] = {};
      for (size_t i = 0; i < node->args.size(); ++i) {
        args[i] = done.at(node->args[i].get());
      }
      value = node->function->fold(args);
    }
    done.emplace(node, value);
  }
  return done.at(expr.get());
}

} // namespace zmlx::lang
