// zmlx/kernel/lang/rows_text.cpp: reductions as functions, and an element's statements.
#include "zmlx/kernel/lang/rows_text.h"

#include <set>

namespace zmlx::lang {

std::string reductions_text(const Program& program, const Spelling& in) {
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
  Statements steps(program, in, "");
  for (size_t i = 0; i < program.steps.size(); ++i) {
    auto& step = program.steps[i];
    if (step.kind != Kind::fold) {
      continue;
    }
    Statements body(*step.loop, in, "  ");
    std::string parameters;
    for (size_t a = 0; a < step.args.size(); ++a) {
      auto dtype =
          a ? program.steps[static_cast<size_t>(step.args[a])].type.dtype : step.type.dtype;
      parameters += (a ? ", " : "") + type_name(computing(dtype), in) + " x" + std::to_string(a);
    }
    text += fill(
        "\nZMLX_INLINE $0 fold_$1($2) {\n$3  return $4;\n}\n",
        {type_name(step.operands, in),
         steps.name(static_cast<int>(i)),
         parameters,
         body.text(),
         body.value(step.loop->results[0], step.operands)});
  }
  return text;
}

std::string fold_text(const Program& program, int step, const Statements& body) {
  auto& made = program.steps[static_cast<size_t>(step)];
  auto& name = body.name(step);
  auto text = body.indent() + fill("s_$0 = fold_$0(s_$0", {name});
  for (size_t a = 1; a < made.args.size(); ++a) {
    auto& arg = program.steps[static_cast<size_t>(made.args[a])];
    text += ", " + body.value(made.args[a], arg.type.dtype);
  }
  return text + ");\n";
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
