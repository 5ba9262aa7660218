// zmlx/kernel/lang/lower.h: expressions for inputs of known dtypes: a list of typed steps, equal
// ones once.
#pragma once

#include <string>
#include <vector>

#include "zmlx/kernel/lang/expr.h"
#include "zmlx/kernel/lang/functions.h"

namespace zmlx::lang {

/// A dtype that gives way when it is weak, as those of Python's numbers.
struct Typed {
  Dtype dtype = Dtype::f32;
  bool weak = false;
  bool operator==(const Typed&) const = default;
};

/// MLX's rule for the dtype of two arrays, and of an array and a number.
Typed promote(Typed a, Typed b);
/// The dtype that values are held in while computing: float32 for all floating ones.
Dtype computing(Dtype dtype);

struct Program;

struct Step {
  Kind kind;
  Typed type; // of the result
  Dtype operands = Dtype::f32; // what a call's arguments are converted to
  double value = 0;
  int input = 0;
  const Function* function = nullptr;
  const Reduction* reduction = nullptr;
  std::shared_ptr<const Program> loop{}; // of a fold; its inputs are the accumulator and arguments
  bool row = false; // whether there is one value for a row
  std::vector<int> args{};
};

struct Program {
  std::vector<Step> steps;
  std::vector<int> results;
};

/// `rows` says which inputs have one value for a row. Throws std::invalid_argument for a bit
/// operation on floating values.
Program lower(
    const std::vector<Expr>& roots,
    const std::vector<std::string>& names,
    const std::vector<Typed>& types,
    const std::vector<bool>& rows = {});

} // namespace zmlx::lang
