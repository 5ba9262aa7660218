// zmlx/kernel/lang/expr.cpp: building and walking expressions.
#include "zmlx/kernel/lang/expr.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

Expr make(Node node) {
  return Expr(std::make_shared<const Node>(std::move(node)));
}

std::shared_ptr<const Node> constant(Kind kind, double value) {
  Node node{kind};
  node.value = value;
  return std::make_shared<const Node>(std::move(node));
}

} // namespace

Expr::Expr(double value) : node_(constant(Kind::real, value)) {}
Expr::Expr(int value) : node_(constant(Kind::integer, value)) {}
Expr::Expr(bool value) : node_(constant(Kind::boolean, value)) {}

Expr input(std::string name) {
  Node node{Kind::input};
  node.name = std::move(name);
  return make(std::move(node));
}

Expr integer(double value) {
  return Expr(constant(Kind::integer, value));
}

Expr call(std::string_view spelled, std::vector<Expr> args) {
  auto name = plain_name(spelled);
  auto check = [&](size_t arity) {
    if (args.size() != arity) {
      fail(
          "kernel",
          std::string(name),
          " takes ",
          arity,
          arity == 1 ? " argument" : " arguments",
          " but got ",
          args.size(),
          ".");
    }
  };
  if (auto* function = find_function(name)) {
    check(static_cast<size_t>(function->arity));
    Node node{Kind::call};
    node.function = function;
    node.args = std::move(args);
    return make(std::move(node));
  }
  if (auto* reduction = find_reduction(name)) {
    check(1);
    Node node{Kind::reduce};
    node.reduction = reduction;
    node.args = std::move(args);
    return make(std::move(node));
  }
  if (auto* composite = find_composite(name)) {
    auto& body = parsed_composite(*composite);
    check(body.args.size());
    return substitute(body.value, body.args, args);
  }
  fail("kernel", "there is no function named '", std::string(name), "'.");
}

Expr cast(Expr value, Dtype dtype) {
  Node node{Kind::cast};
  node.dtype = dtype;
  node.args = {std::move(value)};
  return make(std::move(node));
}

Expr fold(Loop loop, std::vector<Expr> args) {
  Node node{Kind::fold};
  node.loop = std::make_shared<const Loop>(std::move(loop));
  node.args = std::move(args);
  return make(std::move(node));
}

Expr row_size() {
  return make(Node{Kind::row_size});
}

bool has_rows(const std::vector<Expr>& roots) {
  auto order = topological(roots);
  return std::any_of(
      order.begin(), order.end(), [](auto* node) { return node->kind >= Kind::reduce; });
}

Expr substitute(
    const Expr& root,
    const std::vector<std::string>& names,
    const std::vector<Expr>& values) {
  std::unordered_map<const Node*, Expr> done;
  auto walk = [&](auto& self, const Expr& expr) -> Expr {
    if (auto it = done.find(expr.get()); it != done.end()) {
      return it->second;
    }
    Expr out = expr;
    if (expr->kind == Kind::input) {
      for (size_t i = 0; i < names.size(); ++i) {
        if (names[i] == expr->name) {
          out = values[i];
        }
      }
    } else if (!expr->args.empty()) {
      Node node = *expr;
      for (auto& arg : node.args) {
        arg = self(self, arg);
      }
      out = make(std::move(node));
    }
    done.emplace(expr.get(), out);
    return out;
  };
  return walk(walk, root);
}

std::vector<const Node*> topological(const std::vector<Expr>& roots) {
  std::vector<const Node*> order;
  std::unordered_set<const Node*> seen;
  // An explicit stack: a loop of a thousand updates is a tree a thousand deep.
  std::vector<std::pair<const Node*, size_t>> stack;
  for (auto& root : roots) {
    if (seen.insert(root.get()).second) {
      stack.emplace_back(root.get(), 0);
    }
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next == node->args.size()) {
        order.push_back(node);
        stack.pop_back();
      } else if (auto* arg = node->args[next++].get(); seen.insert(arg).second) {
        stack.emplace_back(arg, 0);
      }
    }
  }
  return order;
}

std::vector<std::string> inputs_of(const std::vector<Expr>& roots) {
  std::vector<std::string> names;
  for (auto* node : topological(roots)) {
    if (node->kind == Kind::input &&
        std::find(names.begin(), names.end(), node->name) == names.end()) {
      names.push_back(node->name);
    }
  }
  return names;
}

bool is_constant(const Expr& expr) {
  return expr->kind <= Kind::real;
}

bool is_constant(const Expr& expr, double value) {
  return is_constant(expr) && expr->value == value;
}

Expr operator-(Expr a) {
  return call("neg", {std::move(a)});
}
Expr operator+(Expr a, Expr b) {
  return call("add", {std::move(a), std::move(b)});
}
Expr operator-(Expr a, Expr b) {
  return call("sub", {std::move(a), std::move(b)});
}
Expr operator*(Expr a, Expr b) {
  return call("mul", {std::move(a), std::move(b)});
}
Expr operator/(Expr a, Expr b) {
  return call("div", {std::move(a), std::move(b)});
}
Expr operator<(Expr a, Expr b) {
  return call("lt", {std::move(a), std::move(b)});
}
Expr operator<=(Expr a, Expr b) {
  return call("le", {std::move(a), std::move(b)});
}
Expr operator>(Expr a, Expr b) {
  return call("gt", {std::move(a), std::move(b)});
}
Expr operator>=(Expr a, Expr b) {
  return call("ge", {std::move(a), std::move(b)});
}
Expr abs(Expr x) {
  return call("abs", {std::move(x)});
}
Expr exp(Expr x) {
  return call("exp", {std::move(x)});
}
Expr log(Expr x) {
  return call("log", {std::move(x)});
}
Expr sqrt(Expr x) {
  return call("sqrt", {std::move(x)});
}
Expr rsqrt(Expr x) {
  return call("rsqrt", {std::move(x)});
}
Expr tanh(Expr x) {
  return call("tanh", {std::move(x)});
}
Expr sigmoid(Expr x) {
  return call("sigmoid", {std::move(x)});
}
Expr min(Expr a, Expr b) {
  return call("min", {std::move(a), std::move(b)});
}
Expr max(Expr a, Expr b) {
  return call("max", {std::move(a), std::move(b)});
}
Expr pow(Expr a, Expr b) {
  return call("pow", {std::move(a), std::move(b)});
}
Expr select(Expr condition, Expr yes, Expr no) {
  return call("select", {std::move(condition), std::move(yes), std::move(no)});
}
Expr row_sum(Expr x) {
  return call("row_sum", {std::move(x)});
}
Expr row_mean(Expr x) {
  return call("row_mean", {std::move(x)});
}
Expr row_prod(Expr x) {
  return call("row_prod", {std::move(x)});
}
Expr row_max(Expr x) {
  return call("row_max", {std::move(x)});
}
Expr row_min(Expr x) {
  return call("row_min", {std::move(x)});
}

} // namespace zmlx::lang
