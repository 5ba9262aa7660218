// zmlx/kernel/lang/functions.cpp: the table of functions and the library written in the language.
#include "zmlx/kernel/lang/functions.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace zmlx::lang {
namespace {

using T = Typing;

double remainder_of(double a, double b) {
  double r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

double maximum(double a, double b) {
  return a > b || std::isnan(a) ? a : b;
}

double minimum(double a, double b) {
  return a < b || std::isnan(a) ? a : b;
}

int64_t whole(double x) {
  return static_cast<int64_t>(x);
}

using D = const double*;

// clang-format off
constexpr Function table[] = {
    {"neg", 1, T::promoted, [](D x) { return -x[0]; }, {"-g"}, "-$0"},
    {"add", 2, T::promoted, [](D x) { return x[0] + x[1]; }, {"g", "g"}, "$0 + $1"},
    {"sub", 2, T::promoted, [](D x) { return x[0] - x[1]; }, {"g", "-g"}, "$0 - $1"},
    {"mul", 2, T::promoted, [](D x) { return x[0] * x[1]; }, {"g * b", "g * a"}, "$0 * $1"},
    {"div", 2, T::floating, [](D x) { return x[0] / x[1]; }, {"g / b", "-g * y / b"}, "$0 / $1"},
    {"floor_div", 2, T::promoted, [](D x) { return std::floor(x[0] / x[1]); }, {}, "floor_divide($0, $1)"},
    {"remainder", 2, T::promoted, [](D x) { return remainder_of(x[0], x[1]); }, {"g", "-g * floor(a / b)"}, "floor_remainder($0, $1)"},
    {"pow", 2, T::promoted, [](D x) { return std::pow(x[0], x[1]); },
     {"b == 0 ? 0 : g * b * pow(a, b - 1)", "a == 0 ? 0 : g * y * log(a)"}, "power($0, $1)"},
    {"min", 2, T::promoted, [](D x) { return minimum(x[0], x[1]); }, {"a < b ? g : 0", "a < b ? 0 : g"}, "minimum($0, $1)"},
    {"max", 2, T::promoted, [](D x) { return maximum(x[0], x[1]); }, {"a > b ? g : 0", "a > b ? 0 : g"}, "maximum($0, $1)"},
    {"abs", 1, T::promoted, [](D x) { return std::abs(x[0]); }, {"g * sign(a)"}, "absolute($0)"},
    {"sign", 1, T::promoted, [](D x) { return std::isnan(x[0]) ? x[0] : double((x[0] > 0) - (x[0] < 0)); }, {}, "sign_of($0)"},
    {"floor", 1, T::promoted, [](D x) { return std::floor(x[0]); }, {}, "ZMLX_FLOOR($0)", false},
    {"ceil", 1, T::promoted, [](D x) { return std::ceil(x[0]); }, {}, "__builtin_ceilf($0)", false},
    {"round", 1, T::promoted, [](D x) { return std::nearbyint(x[0]); }, {}, "ZMLX_RINT($0)", false},
    {"trunc", 1, T::promoted, [](D x) { return std::trunc(x[0]); }, {}, "__builtin_truncf($0)", false},
    {"exp", 1, T::floating, [](D x) { return std::exp(x[0]); }, {"g * y"}, "exponential($0)"},
    {"expm1", 1, T::floating, [](D x) { return std::expm1(x[0]); }, {"g * (y + 1)"}, "exponential_minus_1($0)"},
    {"log", 1, T::floating, [](D x) { return std::log(x[0]); }, {"g / a"}, "logarithm($0)"},
    {"log1p", 1, T::floating, [](D x) { return std::log1p(x[0]); }, {"g / (1 + a)"}, "logarithm_1_plus($0)"},
    {"sqrt", 1, T::floating, [](D x) { return std::sqrt(x[0]); }, {"g * 0.5 / y"}, "__builtin_sqrtf($0)"},
    {"rsqrt", 1, T::floating, [](D x) { return 1 / std::sqrt(x[0]); }, {"g * -0.5 * y / a"}, "1.0f / __builtin_sqrtf($0)"},
    {"sin", 1, T::floating, [](D x) { return std::sin(x[0]); }, {"g * cos(a)"}, "sine($0)"},
    {"cos", 1, T::floating, [](D x) { return std::cos(x[0]); }, {"-g * sin(a)"}, "cosine($0)"},
    {"atan", 1, T::floating, [](D x) { return std::atan(x[0]); }, {"g / (1 + a * a)"}, "__builtin_atanf($0)"},
    {"asin", 1, T::floating, [](D x) { return std::asin(x[0]); }, {"g * rsqrt(1 - a * a)"}, "__builtin_asinf($0)"},
    {"acos", 1, T::floating, [](D x) { return std::acos(x[0]); }, {"-g * rsqrt(1 - a * a)"}, "__builtin_acosf($0)"},
    {"tanh", 1, T::floating, [](D x) { return std::tanh(x[0]); }, {"g * (1 - y * y)"}, "hyperbolic_tangent($0)"},
    {"erf", 1, T::floating, [](D x) { return std::erf(x[0]); }, {"g * 1.1283791670955126 * exp(-a * a)"}, "error_function($0)"},
    {"sigmoid", 1, T::floating, [](D x) { return 1 / (1 + std::exp(-x[0])); }, {"g * y * (1 - y)"}, "logistic($0)"},
    {"lt", 2, T::comparison, [](D x) { return double(x[0] < x[1]); }, {}, "$0 < $1"},
    {"le", 2, T::comparison, [](D x) { return double(x[0] <= x[1]); }, {}, "$0 <= $1"},
    {"gt", 2, T::comparison, [](D x) { return double(x[0] > x[1]); }, {}, "$0 > $1"},
    {"ge", 2, T::comparison, [](D x) { return double(x[0] >= x[1]); }, {}, "$0 >= $1"},
    {"eq", 2, T::comparison, [](D x) { return double(x[0] == x[1]); }, {}, "$0 == $1"},
    {"ne", 2, T::comparison, [](D x) { return double(x[0] != x[1]); }, {}, "$0 != $1"},
    {"and", 2, T::logical, [](D x) { return double(x[0] != 0 && x[1] != 0); }, {}, "$0 & $1"},
    {"or", 2, T::logical, [](D x) { return double(x[0] != 0 || x[1] != 0); }, {}, "$0 | $1"},
    {"not", 1, T::logical, [](D x) { return double(x[0] == 0); }, {}, "!$0"},
    {"bit_and", 2, T::bits, [](D x) { return double(whole(x[0]) & whole(x[1])); }, {}, "$0 & $1"},
    {"bit_or", 2, T::bits, [](D x) { return double(whole(x[0]) | whole(x[1])); }, {}, "$0 | $1"},
    {"bit_xor", 2, T::bits, [](D x) { return double(whole(x[0]) ^ whole(x[1])); }, {}, "$0 ^ $1"},
    {"bit_not", 1, T::bits, [](D x) { return double(~whole(x[0])); }, {}, "complement($0)"},
    {"shift_left", 2, T::bits, [](D x) { return double(whole(x[0]) << whole(x[1])); }, {}, "$0 << $1"},
    {"shift_right", 2, T::bits, [](D x) { return double(whole(x[0]) >> whole(x[1])); }, {}, "$0 >> $1"},
    {"stop_gradient", 1, T::promoted, [](D x) { return x[0]; }, {}, "$0"},
    {"select", 3, T::choice, [](D x) { return x[0] != 0 ? x[1] : x[2]; }, {nullptr, "a ? g : 0", "a ? 0 : g"}, "$0 ? $1 : $2"},
};

constexpr double infinity = std::numeric_limits<double>::infinity();

// Of equal largest elements each has its share of the gradient, as in MLX. A product's gradient
// divides by the element unless that is zero.
constexpr Reduction reduction_table[] = {
    {"sum", "$0 + $1", true, true, 0, [](double a, double b) { return a + b; }, "g"},
    {"mean", "$0 + $1", true, true, 0, [](double a, double b) { return a + b; }, "g / row_size"},
    {"prod", "$0 * $1", true, true, 1, [](double a, double b) { return a * b; },
     "zeros = row_sum(a == 0 ? 1.0 : 0.0); rest = row_prod(a == 0 ? 1.0 : a);"
     "a == 0 ? (zeros == 1 ? g * rest : 0) : zeros == 0 ? g * y / a : 0"},
    {"max", "maximum($0, $1)", false, false, -infinity, maximum, "a == y ? g / row_sum(a == y ? 1.0 : 0.0) : 0"},
    {"min", "minimum($0, $1)", false, false, infinity, minimum, "a == y ? g / row_sum(a == y ? 1.0 : 0.0) : 0"},
};

constexpr Composite library[] = {
    {"silu", "x", "x * sigmoid(x)"},
    {"swish", "x", "x * sigmoid(x)"},
    {"relu", "x", "max(x, 0)"},
    {"relu2", "x", "square(max(x, 0))"},
    {"gelu", "x", "0.5 * x * (1 + erf(x * 0.7071067811865476))"},
    {"gelu_tanh", "x", "0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))"},
    {"gelu_approx", "x", "gelu_tanh(x)"},
    {"softplus", "x", "max(x, 0) + log1p(exp(-abs(x)))"},
    {"log_sigmoid", "x", "-softplus(-x)"},
    {"mish", "x", "x * tanh(softplus(x))"},
    {"elu", "x, alpha", "x > 0 ? x : alpha * expm1(min(x, 0))"},
    {"leaky_relu", "x, slope", "x > 0 ? x : slope * x"},
    {"gelu_fast", "x", "x * sigmoid(1.702 * x)"},
    {"relu6", "x", "clamp(x, 0, 6)"},
    {"hardswish", "x", "x * clamp(x + 3, 0, 6) / 6"},
    {"selu", "x", "1.05070099 * elu(x, 1.67326324)"},
    {"square", "x", "x * x"},
    {"reciprocal", "x", "1 / x"},
    {"clamp", "x, low, high", "min(max(x, low), high)"},
    {"fma", "a, b, c", "a * b + c"},
    {"mix", "a, b, t", "a + (b - a) * t"},
    {"logaddexp", "a, b", "a == b ? a + 0.6931471805599453 : max(a, b) + log1p(exp(-abs(a - b)))"},
    {"exp2", "x", "pow(2.0, x)"},
    {"log2", "x", "log(x) * 1.4426950408889634"},
    {"log10", "x", "log(x) * 0.4342944819032518"},
    {"tan", "x", "sin(x) / cos(x)"},
    {"sinh", "x", "abs(x) < 1 ? 0.5 * (expm1(x) + expm1(x) / (expm1(x) + 1)) : 0.5 * exp(0.5 * x) * exp(0.5 * x) - 0.5 * exp(-0.5 * x) * exp(-0.5 * x)"},
    {"cosh", "x", "0.5 * exp(0.5 * x) * exp(0.5 * x) + 0.5 * exp(-0.5 * x) * exp(-0.5 * x)"},
    {"isnan", "x", "x != x"},
    {"isinf", "x", "abs(x) == inf"},
    {"isfinite", "x", "abs(x) < inf"},
    {"row_softmax", "x", "e = exp(x - stop_gradient(row_max(x))); e / row_sum(e)"},
    {"row_logsumexp", "x", "m = stop_gradient(row_max(x)); m = isinf(m) ? 0 : m; log(row_sum(exp(x - m))) + m"},
    {"row_var", "x", "row_mean(square(x - row_mean(x)))"},
};

struct Alias {
  std::string_view from, to;
};
constexpr Alias aliases[] = {
    {"abs_", "abs"}, {"absolute", "abs"}, {"fabs", "abs"}, {"arccos", "acos"}, {"arcsin", "asin"},
    {"arctan", "atan"}, {"clip", "clamp"}, {"fmax", "max"}, {"fmin", "min"}, {"floor_divide", "floor_div"},
    {"max_", "max"}, {"maximum", "max"}, {"min_", "min"}, {"minimum", "min"}, {"multiply", "mul"},
    {"negative", "neg"}, {"power", "pow"}, {"rint", "round"}, {"subtract", "sub"}, {"divide", "div"},
    {"where", "select"}, {"less", "lt"}, {"less_equal", "le"}, {"greater", "gt"}, {"greater_equal", "ge"},
    {"equal", "eq"}, {"not_equal", "ne"}, {"logical_and", "and"}, {"logical_or", "or"}, {"logical_not", "not"},
};
// clang-format on

size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) {
    row[j] = j;
  }
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t here = std::min({row[j] + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1])});
      diagonal = std::exchange(row[j], here);
    }
  }
  return row.back();
}

} // namespace

const Function* find_function(std::string_view name) {
  for (auto& row : table) {
    if (name == row.name) {
      return &row;
    }
  }
  return nullptr;
}

const Composite* find_composite(std::string_view name) {
  for (auto& row : library) {
    if (name == row.name) {
      return &row;
    }
  }
  return nullptr;
}

const Reduction* find_reduction(std::string_view name) {
  for (auto& row : reduction_table) {
    if (name.starts_with("row_") && name.substr(4) == row.name) {
      return &row;
    }
  }
  return nullptr;
}

std::span<const Reduction> reductions() {
  return reduction_table;
}

std::span<const Function> functions() {
  return table;
}

std::span<const Composite> composites() {
  return library;
}

std::string_view plain_name(std::string_view name) {
  for (std::string_view prefix : {"metal::", "precise::", "fast::", "std::", "kk_"}) {
    if (name.starts_with(prefix)) {
      name.remove_prefix(prefix.size());
    }
  }
  for (auto& alias : aliases) {
    if (name == alias.from) {
      return alias.to;
    }
  }
  return name;
}

std::string nearest_name(std::string_view name, const std::vector<std::string>& others) {
  std::string best;
  size_t least = std::max<size_t>(1, name.size() / 3) + 1;
  auto consider = [&](std::string_view candidate) {
    if (size_t d = distance(name, candidate); d < least) {
      least = d;
      best = candidate;
    }
  };
  for (auto& other : others) {
    consider(other);
  }
  for (auto& row : table) {
    consider(row.name);
  }
  for (auto& row : library) {
    consider(row.name);
  }
  std::vector<std::string> rows;
  for (auto& row : reduction_table) {
    rows.push_back("row_" + std::string(row.name));
    consider(rows.back());
  }
  return best;
}

} // namespace zmlx::lang
