// zmlx/kernel/lang/derive.h: derivatives of expressions, as expressions.
#pragma once

#include <string>
#include <vector>

#include "zmlx/kernel/lang/expr.h"

namespace zmlx::lang {

/// Sum over outputs of cotangent times d(output)/d(input), for each named input: reverse mode.
std::vector<Expr> gradients(
    const std::vector<Expr>& outputs,
    const std::vector<Expr>& cotangents,
    const std::vector<std::string>& inputs);

/// Constants folded; neutral elements and double negations dropped.
Expr simplify(const Expr& expr);

/// The value of an expression in double precision, for given inputs.
double evaluate(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<double>& values);

} // namespace zmlx::lang
