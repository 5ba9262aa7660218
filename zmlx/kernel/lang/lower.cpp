// zmlx/kernel/lang/lower.cpp: dtype inference and value numbering.
#include "zmlx/kernel/lang/lower.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <unordered_map>

#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

bool is_signed(Dtype dtype) {
  return dtype >= Dtype::i8 && dtype <= Dtype::i64;
}

Dtype promote_arrays(Dtype a, Dtype b) {
  if (a == b) {
    return a;
  }
  if (is_floating(a) || is_floating(b)) {
    return is_floating(a) && is_floating(b) ? Dtype::f32 : std::max(a, b);
  }
  if (a == Dtype::boolean || b == Dtype::boolean || is_signed(a) == is_signed(b)) {
    return std::max(a, b);
  }
  Dtype with_sign = is_signed(a) ? a : b;
  Dtype without = is_signed(a) ? b : a;
  if (size_of(with_sign) > size_of(without)) {
    return with_sign;
  }
  switch (size_of(without)) {
    case 1:
      return Dtype::i16;
    case 2:
      return Dtype::i32;
    case 4:
      return Dtype::i64;
    default:
      return Dtype::f32;
  }
}

/// bool, integer, real.
int category(Dtype dtype) {
  return dtype == Dtype::boolean ? 0 : is_floating(dtype) ? 2 : 1;
}

class Lowering {
 public:
  Program program;

  int add(Step step) {
    std::string key;
    auto put = [&](auto value) {
      key.append(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    put(step.kind);
    put(step.type.dtype);
    put(step.type.weak);
    put(step.operands);
    put(step.value);
    put(step.input);
    put(reinterpret_cast<uintptr_t>(step.function));
    put(reinterpret_cast<uintptr_t>(step.reduction));
    put(reinterpret_cast<uintptr_t>(step.loop.get()));
    for (int arg : step.args) {
      put(arg);
    }
    if (step.kind == Kind::call || step.kind == Kind::cast) {
      step.row = std::all_of(step.args.begin(), step.args.end(), [&](int arg) {
        return program.steps[static_cast<size_t>(arg)].row;
      });
    } else if (step.kind != Kind::input) {
      step.row = true;
    }
    auto [it, fresh] = numbers_.emplace(key, static_cast<int>(program.steps.size()));
    if (fresh) {
      program.steps.push_back(std::move(step));
    }
    return it->second;
  }

  const Typed& type(int step) const {
    return program.steps[static_cast<size_t>(step)].type;
  }

  int reduce(const Reduction& reduction, int arg) {
    Step step{Kind::reduce, type(arg)};
    auto& dtype = step.type.dtype;
    if (reduction.name == std::string_view("mean") && !is_floating(dtype)) {
      dtype = Dtype::f32;
    } else if (reduction.adds && !is_floating(dtype) && size_of(dtype) < 4) {
      dtype = is_signed(dtype) || dtype == Dtype::boolean ? Dtype::i32 : Dtype::u32;
    }
    step.reduction = &reduction;
    step.operands = computing(dtype);
    step.args = {arg};
    return add(std::move(step));
  }

  int fold(const Loop& loop, std::vector<int> args) {
    std::vector<Typed> types;
    for (int arg : args) {
      types.push_back(type(arg));
    }
    // The accumulator has the dtype that an update makes of it.
    auto typed = lower({loop.update}, loop.names, types);
    types[0] = {typed.steps[static_cast<size_t>(typed.results[0])].type.dtype, false};
    Step step{Kind::fold, types[0]};
    step.loop = std::make_shared<const Program>(lower({loop.update}, loop.names, types));
    step.operands = computing(types[0].dtype);
    step.args = std::move(args);
    return add(std::move(step));
  }

  int call(const Function& function, std::vector<int> args) {
    size_t first = function.typing == Typing::choice ? 1 : 0;
    Typed common = type(args[first]);
    for (size_t i = first + 1; i < args.size(); ++i) {
      common = promote(common, type(args[i]));
    }
    Step step{Kind::call, common};
    step.function = &function;
    switch (function.typing) {
      case Typing::floating:
        if (!is_floating(common.dtype)) {
          step.type.dtype = Dtype::f32;
        }
        break;
      case Typing::comparison:
        step.type = {Dtype::boolean, common.weak};
        break;
      case Typing::logical:
        step.type = {Dtype::boolean, common.weak};
        common.dtype = Dtype::boolean;
        break;
      case Typing::bits:
        if (is_floating(common.dtype)) {
          fail("kernel", function.name, " takes integers but got ", name_of(common.dtype), ".");
        }
        break;
      default:
        break;
    }
    if (!function.integers && !is_floating(common.dtype)) {
      return args[0]; // integers are their own floor
    }
    bool compares = function.typing == Typing::comparison || function.typing == Typing::logical;
    step.operands = computing(compares ? common.dtype : step.type.dtype);
    step.args = std::move(args);
    return add(std::move(step));
  }

 private:
  std::map<std::string, int> numbers_;
};

} // namespace

Typed promote(Typed a, Typed b) {
  if (a.weak == b.weak) {
    return {promote_arrays(a.dtype, b.dtype), a.weak};
  }
  auto& strong = a.weak ? b : a;
  auto& weak = a.weak ? a : b;
  return {category(weak.dtype) > category(strong.dtype) ? weak.dtype : strong.dtype, false};
}

Dtype computing(Dtype dtype) {
  return is_floating(dtype) ? Dtype::f32 : dtype;
}

Program lower(
    const std::vector<Expr>& roots,
    const std::vector<std::string>& names,
    const std::vector<Typed>& types,
    const std::vector<bool>& rows) {
  Lowering lowering;
  std::unordered_map<const Node*, int> done;
  for (auto* node : topological(roots)) {
    Step step{node->kind, {}};
    step.value = node->value;
    int number = 0;
    switch (node->kind) {
      case Kind::boolean:
        step.type = {Dtype::boolean, true};
        number = lowering.add(std::move(step));
        break;
      case Kind::integer:
        step.type = {Dtype::i32, true};
        number = lowering.add(std::move(step));
        break;
      case Kind::real:
        step.type = {Dtype::f32, true};
        number = lowering.add(std::move(step));
        break;
      case Kind::input: {
        auto it = std::find(names.begin(), names.end(), node->name);
        if (it == names.end()) {
          fail("kernel", "the expression uses '", node->name, "', which is not an input.");
        }
        step.input = static_cast<int>(it - names.begin());
        step.type = types[static_cast<size_t>(step.input)];
        step.row =
            static_cast<size_t>(step.input) < rows.size() && rows[static_cast<size_t>(step.input)];
        number = lowering.add(std::move(step));
        break;
      }
      case Kind::cast:
        step.type = {node->dtype, false};
        step.args = {done.at(node->args[0].get())};
        number = lowering.add(std::move(step));
        break;
      case Kind::call: {
        std::vector<int> args;
        for (auto& arg : node->args) {
          args.push_back(done.at(arg.get()));
        }
        number = lowering.call(*node->function, std::move(args));
        break;
      }
      case Kind::reduce:
        number = lowering.reduce(*node->reduction, done.at(node->args[0].get()));
        break;
      case Kind::fold: {
        std::vector<int> args;
        for (auto& arg : node->args) {
          args.push_back(done.at(arg.get()));
        }
        number = lowering.fold(*node->loop, std::move(args));
        break;
      }
      case Kind::row_size:
        step.type = {Dtype::i32, true};
        number = lowering.add(std::move(step));
        break;
    }
    done.emplace(node, number);
  }
  for (auto& root : roots) {
    lowering.program.results.push_back(done.at(root.get()));
  }
  return std::move(lowering.program);
}

} // namespace zmlx::lang
