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
/// A format with $0, $1, ... replaced.
std::string fill(std::string_view format, const std::vector<std::string>& parts);
std::string type_name(Dtype dtype, const Spelling& in);
std::string literal(double value, Dtype dtype, const Spelling& in);

/// The statements of a program, `indent` before each; inputs are called x0, x1, ...
class Statements {
 public:
  Statements(const Program& program, const Spelling& in, std::string indent);

  const std::string& text() const {
    return text_;
  }
  /// `const float x0 = load(...);` for each input that is used; element(i) says where it is.
  template <typename F>
  std::string loads(const std::vector<Dtype>& dtypes, F element) const {
    std::string text;
    for (size_t i = 0; i < dtypes.size(); ++i) {
      if (uses(static_cast<int>(i))) {
        auto held = type_name(computing(dtypes[i]), in_);
        text += indent_ + "const " + held + " x" + std::to_string(i) + " = " +
            fill(in_.load, {element(i), held}) + ";\n";
      }
    }
    return text;
  }
  /// A step's value converted to what `dtype` is computed in.
  std::string value(int step, Dtype dtype) const;
  /// The same converted to `dtype` as it is stored.
  std::string stored(int step, Dtype dtype) const;

 private:
  void add(size_t i);
  bool uses(int input) const;

  const Program& program_;
  const Spelling& in_;
  std::string indent_;
  std::string text_;
  std::vector<std::string> names_;
  int count_ = 0;
};

} // namespace zmlx::lang
