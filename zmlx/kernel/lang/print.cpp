// zmlx/kernel/lang/print.cpp: the printers; what differs between languages is in tables.
#include "zmlx/kernel/lang/print.h"

#include <charconv>
#include <cmath>

#include "zmlx/kernel/cuda/source.h"
#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

struct Spelling {
  std::string_view name;
  std::string_view prelude; // the file whose text stands before a kernel
  std::string_view load, store; // $0: the element or the value, $1: the stored type
  std::string_view infinity, nan;
  const char* f16;
  const char* bf16;
};

constexpr Spelling spellings[] = {
    {"cpp",
     "zmlx/kernel/lang/math.h",
     "load($0)",
     "Storage<$1>::round($0)",
     "__builtin_inff()",
     "__builtin_nanf(\"\")",
     "f16",
     "bf16"},
};

const Spelling& spelling(Language language) {
  return spellings[static_cast<size_t>(language)];
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
    auto word = std::string(std::isnan(number) ? in.nan : in.infinity);
    return number < 0 ? "(-" + word + ")" : word;
  }
  auto [end, code] = std::to_chars(text, text + sizeof(text), number);
  std::string out(text, end);
  out += out.find_first_of(".e") == std::string::npos ? ".0f" : "f";
  return number < 0 || std::signbit(number) ? "(" + out + ")" : out;
}

/// The statements of a program, `indent` before each; inputs are called in0, in1, ...
class Statements {
 public:
  Statements(const Program& program, const Spelling& in, std::string indent)
      : program_(program), in_(in), indent_(std::move(indent)) {
    for (size_t i = 0; i < program.steps.size(); ++i) {
      add(i);
    }
  }

  const std::string& text() const {
    return text_;
  }

  /// A step's value converted to what `dtype` is computed in.
  std::string value(int step, Dtype dtype) const {
    auto& from = program_.steps[static_cast<size_t>(step)];
    if (from.kind <= Kind::real) {
      return literal(from.value, computing(dtype), in_);
    }
    auto& name = names_[static_cast<size_t>(step)];
    return computing(from.type.dtype) == computing(dtype)
        ? name
        : type_name(computing(dtype), in_) + "(" + name + ")";
  }

 private:
  void add(size_t i) {
    auto& step = program_.steps[i];
    if (step.kind <= Kind::real) {
      names_.emplace_back();
      return;
    }
    if (step.kind == Kind::input) {
      names_.push_back("x" + std::to_string(step.input));
      return;
    }
    std::string made;
    if (step.kind == Kind::cast) {
      made = value(step.args[0], step.type.dtype);
      if (computing(step.type.dtype) != step.type.dtype) {
        auto narrow = type_name(step.type.dtype, in_);
        made = fill(in_.load, {fill(in_.store, {made, narrow})});
      }
    } else {
      std::vector<std::string> args;
      for (size_t a = 0; a < step.args.size(); ++a) {
        bool condition = step.function->typing == Typing::choice && a == 0;
        args.push_back(value(step.args[a], condition ? Dtype::boolean : step.operands));
      }
      made = fill(step.function->cpp, args);
    }
    auto type = type_name(computing(step.type.dtype), in_);
    auto name = "t" + std::to_string(count_++);
    // Arithmetic on short integers is done on int and cut back.
    bool narrow = !is_floating(step.type.dtype) && size_of(step.type.dtype) < 4;
    text_ += indent_ + "const " + type + " " + name + " = " +
        (narrow ? type + "(" + made + ")" : made) + ";\n";
    names_.push_back(name);
  }

  const Program& program_;
  const Spelling& in_;
  std::string indent_;
  std::string text_;
  std::vector<std::string> names_;
  int count_ = 0;
};

std::string prelude(const Spelling& in) {
  for (auto* source = source_texts; source->path; ++source) {
    if (source->path == in.prelude) {
      return source->text;
    }
  }
  fail("kernel", "the library lacks the text ", std::string(in.prelude), ".");
}

} // namespace

Language language_named(std::string_view name) {
  for (auto& row : spellings) {
    if (row.name == name) {
      return static_cast<Language>(&row - spellings);
    }
  }
  fail("kernel", "language must be cpp but got ", std::string(name), ".");
}

std::string elementwise_text(const ElementwiseText& kernel, Language language) {
  auto& in = spelling(language);
  std::string loads;
  std::string stores;
  std::string indent = "    ";
  Statements body(kernel.program, in, indent);
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    auto n = std::to_string(i);
    bool used = false;
    for (auto& step : kernel.program.steps) {
      used = used || (step.kind == Kind::input && step.input == static_cast<int>(i));
    }
    if (used) {
      auto type = type_name(kernel.in[i], in);
      auto held = type_name(computing(kernel.in[i]), in);
      loads +=
          indent + "const " + held + " x" + n + " = " + fill(in.load, {"in" + n + "[i]"}) + ";\n";
    }
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    auto value = body.value(kernel.program.results[i], kernel.out[i]);
    stores += indent + "out" + std::to_string(i) +
        "[i] = " + fill(in.store, {value, type_name(kernel.out[i], in)}) + ";\n";
  }
  auto text = prelude(in);
  std::string pointers;
  auto pointer = [&](Dtype dtype, const std::string& side, size_t i) {
    auto n = std::to_string(i);
    auto type = (side == "in" ? "const " : "") + type_name(dtype, in);
    pointers +=
        "  " + type + "* " + side + n + " = static_cast<" + type + "*>(" + side + "[" + n + "]);\n";
  };
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    pointer(kernel.in[i], "in", i);
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    pointer(kernel.out[i], "out", i);
  }
  return text +
      "\nextern \"C\" void zmlx_run(const void* const* in, void* const* out, int64_t n) {\n" +
      pointers + "#pragma omp simd\n  for (int64_t i = 0; i < n; ++i) {\n" + loads + body.text() +
      stores + "  }\n}\n";
}

} // namespace zmlx::lang
