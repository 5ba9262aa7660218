// zmlx/kernel/lang/scan.h: words, numbers and signs of the language's text, and errors that point
// into it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "zmlx/kernel/lang/expr.h"

namespace zmlx::lang {

/// "float", "bfloat16_t", "int32", ...
std::optional<Dtype> find_type(std::string_view name);
/// The names of upstream's template parameters and `auto`: the computing type, so no conversion.
bool is_computing_type(std::string_view name);
/// "pi", "inf", "FLT_MAX", ...
std::optional<double> named_constant(std::string_view name);

class Scanner {
 public:
  Scanner(std::string_view text, std::string where) : text_(text), where_(std::move(where)) {}

  /// Throws std::invalid_argument with the line in question and a caret.
  [[noreturn]] void error(const std::string& what, size_t at) const;
  /// Whether nothing follows but spaces and comments.
  bool done();
  bool accept(std::string_view token);
  void expect(std::string_view token);

 protected:
  void skip();
  /// What comes next, for errors.
  std::string here();
  /// A name with its namespaces, or "".
  std::string_view name();
  Expr number();

  std::string_view text_;
  std::string where_;
  size_t at_ = 0;

 private:
  /// Skips f, h, u, l behind a number; true for those of floating numbers.
  bool accept_suffix();
};

} // namespace zmlx::lang
