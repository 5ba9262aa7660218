// zmlx/kernel/lang/derive.h: derivatives of expressions, as expressions.
#pragma once

#include <string>
#include <vector>

#include "zmlx/kernel/lang/expr.h"

namespace zmlx::lang {

/// Sum over outputs of cotangent times d(output)/d(input), for each named input: reverse mode.
/// `rows` names the inputs that have one value a row; so have their gradients, and the cotangents
/// of outputs that are made of such values alone.
std::vector<Expr> gradients(
    const std::vector<Expr>& outputs,
    const std::vector<Expr>& cotangents,
    const std::vector<std::string>& inputs,
    const std::vector<std::string>& rows = {});

/// Whether it has one value for a row, if the inputs named in `rows` have.
bool is_row(const Expr& expr, const std::vector<std::string>& rows);

/// Constants folded; neutral elements and double negations dropped.
Expr simplify(const Expr& expr);

/// The values of an expression in double precision along a row of n elements, for inputs that have
/// n values or one; one value where it is the same for all.
std::vector<double> evaluate_row(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<std::vector<double>>& values,
    size_t n);

/// The same for a row of one element.
double evaluate(
    const Expr& expr,
    const std::vector<std::string>& names,
    const std::vector<double>& values);

} // namespace zmlx::lang
