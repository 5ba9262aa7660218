// zmlx/kernel/lang/parse.h: expressions from C-like text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zmlx/kernel/lang/expr.h"
#include "zmlx/kernel/lang/functions.h"

namespace zmlx::lang {

/// A function of the language: its value in terms of its arguments, which are inputs.
struct Body {
  std::string name;
  std::vector<std::string> args;
  Expr value;
};

struct Source {
  std::string text;
  std::vector<std::string> inputs; // names that the text may use
  std::string where = "kernel"; // named in errors
  std::string prelude{}; // statements before the text: "float t = exp(x);"
  std::string header{}; // functions: "inline float f(float x) { return x * x; }"
};

/// The value of `statements; expression`. Statements are `[type] name = expression;`; a name may be
/// assigned to again. Throws std::invalid_argument with the text and a caret at the place.
Expr parse(const Source& source);

/// The values that statements `out[elem] = expression;` give to each of `outputs`.
std::vector<Expr> parse_outputs(const Source& source, const std::vector<std::string>& outputs);

/// The library's function, parsed on first use.
const Body& parsed_composite(const Composite& composite);

} // namespace zmlx::lang
