// zmlx/kernel/lang/functions.h: the functions of the language, one row each: how it is typed,
// folded, differentiated and spelled.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace zmlx::lang {

/// How a result's dtype follows from the arguments'.
enum class Typing : uint8_t {
  promoted, // the arguments' common dtype
  floating, // the same, integers becoming float32
  comparison, // bool; arguments of their common dtype
  logical, // bool from bools
  bits, // the common dtype, which must not be floating
  choice, // the common dtype of the last two; the first is bool
};

struct Function {
  const char* name;
  int arity;
  Typing typing;
  double (*fold)(const double* args);
  /// d/d(argument i) times g, in `a`, `b`, `c`, the result `y` and g; empty where it is zero.
  const char* derivative[3];
  const char* spelling; // "$0 + $1": with kernel/lang/math.h, where a language has none of its own
  bool integers = true; // whether the spelling holds for integers, too
};

/// A reduction of a row, called "row_" and its name.
struct Reduction {
  const char* name;
  const char* combine; // of $0 and $1
  bool adds; // float values add up in double precision, small integers in 32 bits
  bool empty; // whether there is a result of no elements
  double start; // what is neutral
  double (*fold)(double a, double b);
  /// d/d(argument `a`) times g, in the result `y` and g too, which are one value a row.
  const char* derivative;
};

/// A function that is written in the language itself.
struct Composite {
  const char* name;
  const char* args; // "a, b"
  const char* body;
};

/// nullptr when there is no such row.
const Function* find_function(std::string_view name);
const Composite* find_composite(std::string_view name);
const Reduction* find_reduction(std::string_view name);
std::span<const Function> functions();
std::span<const Composite> composites();
std::span<const Reduction> reductions();
/// Names that have several spellings: "fabs", "metal::exp" and "kk_sigmoid" become "abs", "exp" and
/// "sigmoid".
std::string_view plain_name(std::string_view name);
/// The known name that is nearest in spelling, or "".
std::string nearest_name(std::string_view name, const std::vector<std::string>& others);

} // namespace zmlx::lang
