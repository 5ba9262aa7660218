// zmlx/kernel/lang/statements.h: a program's steps as the statements of one element, in each
// language. What differs between languages is in tables.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "zmlx/kernel/lang/print.h"

namespace zmlx::lang {

/// A function that a language spells in its own way.
struct Difference {
  std::string_view name;
  const char* spelling;
};

struct Spelling {
  std::string_view name;
  std::vector<std::string_view> prelude; // files whose texts stand before a kernel
  std::string_view load; // $0: the element, $1: the type that it is held in
  std::string_view store; // $0: the value, $1: the stored type
  const char* f16;
  const char* bf16;
  std::span<const Difference> differences;
};

const Spelling& spelling(Language language);
/// The texts that a language's kernels build on.
std::string prelude_text(const Spelling& in);
/// One such text by its path.
std::string prelude_file(std::string_view path);
/// A format with $0, $1, ... replaced.
std::string fill(std::string_view format, const std::vector<std::string>& parts);
std::string type_name(Dtype dtype, const Spelling& in);
std::string literal(double value, Dtype dtype, const Spelling& in);

/// The statements of a program, `indent` before each; inputs are called x0, x1, ...
class Statements {
 public:
  Statements(const Program& program, const Spelling& in, std::string indent);

  /// All calls and casts, in order.
  std::string text() const;
  /// `const float t3 = exp(t2);` of a call or cast.
  std::string statement(int step) const;
  const std::string& indent() const {
    return indent_;
  }
  /// What a step's value is called; empty for constants.
  const std::string& name(int step) const {
    return names_[static_cast<size_t>(step)];
  }
  /// The type that a step's value is held in.
  std::string held(int step) const;
  /// `const float x0 = load(element);` of an input.
  std::string load(int step, const std::string& element) const;
  /// The loads of all inputs that are used; element(i) says where it is.
  template <typename F>
  std::string loads(size_t inputs, F element) const {
    std::string text;
    for (size_t i = 0; i < inputs; ++i) {
      for (size_t step = 0; step < program_.steps.size(); ++step) {
        auto& at = program_.steps[step];
        if (at.kind == Kind::input && static_cast<size_t>(at.input) == i) {
          text += load(static_cast<int>(step), element(i));
        }
      }
    }
    return text;
  }
  /// A step's value converted to what `dtype` is computed in.
  std::string value(int step, Dtype dtype) const;
  /// The same converted to `dtype` as it is stored.
  std::string stored(int step, Dtype dtype) const;

 private:
  const Program& program_;
  const Spelling& in_;
  std::string indent_;
  std::vector<std::string> names_;
};

} // namespace zmlx::lang
