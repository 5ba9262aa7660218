// zmlx/kernel/lang/statements.cpp: the languages' tables, and one statement a step.
#include "zmlx/kernel/lang/statements.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "zmlx/kernel/cuda/source.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

constexpr Difference cuda_functions[] = {
    {"exp", "expf($0)"},
    {"expm1", "expm1f($0)"},
    {"log", "logf($0)"},
    {"log1p", "log1pf($0)"},
    {"sqrt", "sqrtf($0)"},
    {"rsqrt", "rsqrtf($0)"},
    {"sin", "sinf($0)"},
    {"cos", "cosf($0)"},
    {"atan", "atanf($0)"},
    {"asin", "asinf($0)"},
    {"acos", "acosf($0)"},
    {"tanh", "tanhf($0)"},
    {"erf", "erff($0)"},
    {"sigmoid", "1.0f / (1.0f + expf(-$0))"},
    {"ceil", "ceilf($0)"},
    {"trunc", "truncf($0)"},
};

constexpr Difference metal_functions[] = {
    {"exp", "metal::precise::exp($0)"},
    {"log", "metal::precise::log($0)"},
    {"sqrt", "metal::precise::sqrt($0)"},
    {"rsqrt", "metal::precise::rsqrt($0)"},
    {"sin", "metal::precise::sin($0)"},
    {"cos", "metal::precise::cos($0)"},
    {"atan", "metal::precise::atan($0)"},
    {"asin", "metal::precise::asin($0)"},
    {"acos", "metal::precise::acos($0)"},
    {"tanh", "metal::precise::tanh($0)"},
    {"ceil", "metal::ceil($0)"},
    {"trunc", "metal::trunc($0)"},
};

const Spelling spellings[] = {
    {"cpp",
     {"zmlx/kernel/lang/math_cpp.h", "zmlx/kernel/lang/math.h"},
     "load($0)",
     "Storage<$1>::round($0)",
     "f16",
     "bf16",
     {}},
    {"cuda",
     {"zmlx/kernel/lang/math_cuda.h", "zmlx/kernel/lang/math.h"},
     "load($0)",
     "Storage<$1>::round($0)",
     "f16",
     "bf16",
     cuda_functions},
    {"metal",
     {"zmlx/kernel/lang/math_metal.h", "zmlx/kernel/lang/math.h"},
     "$1($0)",
     "$1($0)",
     "half",
     "bfloat16_t",
     metal_functions},
};

const char* spelled(const Function& function, const Spelling& in) {
  auto it = std::find_if(in.differences.begin(), in.differences.end(), [&](auto& row) {
    return row.name == function.name;
  });
  return it == in.differences.end() ? function.spelling : it->spelling;
}

} // namespace

const Spelling& spelling(Language language) {
  return spellings[static_cast<size_t>(language)];
}

Language language_named(std::string_view name) {
  std::string known;
  for (auto& row : spellings) {
    if (row.name == name) {
      return static_cast<Language>(&row - spellings);
    }
    known += (known.empty() ? "" : ", ") + std::string(row.name);
  }
  fail("kernel", "language must be one of ", known, " but got ", std::string(name), ".");
}

std::string prelude_text(const Spelling& in) {
  std::string text;
  for (auto file : in.prelude) {
    text += prelude_file(file);
  }
  return text;
}

std::string prelude_file(std::string_view path) {
  auto* source = source_texts;
  while (source->path && source->path != path) {
    ++source;
  }
  if (!source->path) {
    fail("kernel", "the library lacks the text ", std::string(path), ".");
  }
  return source->text;
}

std::string fill(std::string_view format, const std::vector<std::string>& parts) {
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] == '$') {
      out += parts[static_cast<size_t>(format[++i] - '0')];
    } else {
      out += format[i];
    }
  }
  return out;
}

std::string type_name(Dtype dtype, const Spelling& in) {
  constexpr const char* names[] = {
      "bool",
      "uint8_t",
      "uint16_t",
      "uint32_t",
      "uint64_t",
      "int8_t",
      "int16_t",
      "int32_t",
      "int64_t"};
  switch (dtype) {
    case Dtype::f16:
      return in.f16;
    case Dtype::bf16:
      return in.bf16;
    case Dtype::f32:
      return "float";
    default:
      return names[static_cast<size_t>(dtype)];
  }
}

std::string literal(double value, Dtype dtype, const Spelling& in) {
  if (dtype == Dtype::boolean) {
    return value != 0 ? "true" : "false";
  }
  char text[64];
  if (!is_floating(dtype)) {
    // Of an unsigned type the bits count: -1 is its largest value.
    auto [end, code] = std::to_chars(text, text + sizeof(text), static_cast<int64_t>(value));
    return type_name(dtype, in) + "(" + std::string(text, end) + ")";
  }
  auto number = static_cast<float>(value);
  if (!std::isfinite(number)) {
    std::string word = std::isnan(number) ? "ZMLX_NAN" : "ZMLX_INFINITY";
    return number < 0 ? "(-" + word + ")" : word;
  }
  auto [end, code] = std::to_chars(text, text + sizeof(text), number);
  std::string out(text, end);
  out += out.find_first_of(".e") == std::string::npos ? ".0f" : "f";
  return number < 0 || std::signbit(number) ? "(" + out + ")" : out;
}

Statements::Statements(const Program& program, const Spelling& in, std::string indent)
    : program_(program), in_(in), indent_(std::move(indent)) {
  int count = 0;
  for (auto& step : program.steps) {
    names_.push_back(
        step.kind <= Kind::real           ? std::string()
            : step.kind == Kind::input    ? "x" + std::to_string(step.input)
            : step.kind == Kind::row_size ? std::string("row_size")
                                          : "t" + std::to_string(count++));
  }
}

std::string Statements::text() const {
  std::string text;
  for (size_t i = 0; i < program_.steps.size(); ++i) {
    if (program_.steps[i].kind == Kind::call || program_.steps[i].kind == Kind::cast) {
      text += statement(static_cast<int>(i));
    }
  }
  return text;
}

std::string Statements::held(int step) const {
  return type_name(computing(program_.steps[static_cast<size_t>(step)].type.dtype), in_);
}

std::string Statements::load(int step, const std::string& element) const {
  auto type = held(step);
  return indent_ + "const " + type + " " + name(step) + " = " + fill(in_.load, {element, type}) +
      ";\n";
}

std::string Statements::value(int step, Dtype dtype) const {
  auto& from = program_.steps[static_cast<size_t>(step)];
  if (from.kind <= Kind::real) {
    return literal(from.value, computing(dtype), in_);
  }
  auto& name = names_[static_cast<size_t>(step)];
  return computing(from.type.dtype) == computing(dtype)
      ? name
      : type_name(computing(dtype), in_) + "(" + name + ")";
}

std::string Statements::stored(int step, Dtype dtype) const {
  return fill(in_.store, {value(step, dtype), type_name(dtype, in_)});
}

std::string Statements::statement(int number) const {
  auto& step = program_.steps[static_cast<size_t>(number)];
  std::string made;
  auto type = held(number);
  if (step.kind == Kind::cast) {
    made = value(step.args[0], step.type.dtype);
    if (computing(step.type.dtype) != step.type.dtype) {
      auto narrow = type_name(step.type.dtype, in_);
      made = fill(in_.load, {fill(in_.store, {made, narrow}), type});
    }
  } else {
    std::vector<std::string> args;
    for (size_t a = 0; a < step.args.size(); ++a) {
      bool condition = step.function->typing == Typing::choice && a == 0;
      args.push_back(value(step.args[a], condition ? Dtype::boolean : step.operands));
    }
    made = fill(spelled(*step.function, in_), args);
  }
  // Arithmetic on short integers is done on int and cut back.
  bool narrow = !is_floating(step.type.dtype) && size_of(step.type.dtype) < 4;
  return indent_ + "const " + type + " " + name(number) + " = " +
      (narrow ? type + "(" + made + ")" : made) + ";\n";
}

} // namespace zmlx::lang
