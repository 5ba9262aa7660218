// zmlx/kernel/lang/rows_text.cpp: reductions as functions, and an element's statements.
#include "zmlx/kernel/lang/rows_text.h"

#include <set>

namespace zmlx::lang {

std::string reductions_text(const Program& program) {
  std::set<std::string_view> names;
  for (auto& step : program.steps) {
    if (step.kind == Kind::reduce) {
      names.insert(step.reduction->name);
    }
  }
  std::string text;
  for (auto& row : reductions()) {
    if (names.count(row.name)) {
      text += fill(
          "\nstruct row_$0 {\n  template <typename T>\n  ZMLX_INLINE T of(T a, T b) {\n    return $1;\n"
          "  }\n};\n",
          {row.name, fill(row.combine, {"a", "b"})});
    }
  }
  return text;
}

std::string element_text(
    const Program& program,
    const Pass& pass,
    const Statements& body,
    const std::function<std::string(int)>& loaded,
    const std::function<std::string(int)>& restored) {
  std::string text;
  for (int step : pass.restored) {
    text += body.indent() + "const " + body.held(step) + " " + body.name(step) + " = " +
        restored(step) + ";\n";
  }
  for (int step : pass.each) {
    auto& made = program.steps[static_cast<size_t>(step)];
    text += made.kind == Kind::input ? body.load(step, loaded(made.input)) : body.statement(step);
  }
  return text;
}

} // namespace zmlx::lang
