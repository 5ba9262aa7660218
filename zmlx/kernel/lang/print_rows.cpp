// zmlx/kernel/lang/print_rows.cpp: passes over a row as loops in C++.
#include "zmlx/kernel/lang/print_rows.h"

#include "zmlx/kernel/lang/reduce.h"
#include "zmlx/kernel/lang/rows_text.h"

namespace zmlx::lang {
namespace {

bool wide(const Step& reduce) {
  return reduce.reduction->adds && is_floating(reduce.type.dtype);
}

/// Sums are float32 in lanes, as their parts are short; products would leave its range.
std::string lane_type(const Step& reduce, const Spelling& in) {
  bool product = wide(reduce) && reduce.reduction->start == 1;
  return product ? "double" : type_name(reduce.operands, in);
}

std::string total_type(const Step& reduce, const Spelling& in) {
  return wide(reduce) ? "double" : type_name(reduce.operands, in);
}

class CppRows {
 public:
  explicit CppRows(const ElementwiseText& kernel)
      : kernel_(kernel),
        steps_(kernel.program.steps),
        plan_(schedule(kernel.program, Keep::expensive)),
        rows_(kernel.program, in_, "    "),
        elements_(kernel.program, in_, "        ") {}

  std::string text() const {
    std::string body;
    for (auto& pass : plan_.passes) {
      body += once(pass.before);
      body += pass.in_order ? fold(pass) : pass.reduces.empty() ? write(pass) : reduce(pass);
    }
    body += once(plan_.after);
    for (size_t i = 0; i < kernel_.out.size(); ++i) {
      body += at(kernel_.program.results[i]).row ? "    " + stored(i, rows_, "0") : "";
    }
    return reductions_text(kernel_.program, in_) +
        "\nextern \"C\" void zmlx_rows(\n    const void* const* in, const int64_t* in_steps, void* "
        "const* out,\n    const int64_t* out_steps, int64_t rows, int64_t n, char* kept) {\n"
        "  const int32_t row_size = int32_t(n);\n" +
        slots() + "  for (int64_t row = 0; row < rows; ++row) {\n" + pointers() + body + "  }\n}\n";
  }

 private:
  const Step& at(int step) const {
    return steps_[static_cast<size_t>(step)];
  }

  std::string slots() const {
    std::string text =
        plan_.kept.empty() ? "" : "  const int64_t pitch = (n * 8 + 63) / 64 * 64;\n";
    for (size_t slot = 0; slot < plan_.kept.size(); ++slot) {
      int step = plan_.kept[slot];
      text += fill(
          "  $0* k_$1 = at<$0>(kept, $2 * pitch);\n",
          {rows_.held(step), rows_.name(step), std::to_string(slot)});
    }
    return text;
  }

  std::string pointers() const {
    std::string text;
    constexpr const char* line = "    $0* $1$2 = at<$0>($1[$2], row * $1_steps[$2]);\n";
    for (size_t i = 0; i < kernel_.in.size(); ++i) {
      text += fill(line, {"const " + type_name(kernel_.in[i], in_), "in", std::to_string(i)});
    }
    for (size_t i = 0; i < kernel_.out.size(); ++i) {
      text += fill(line, {type_name(kernel_.out[i], in_), "out", std::to_string(i)});
    }
    return text;
  }

  std::string once(const std::vector<int>& steps) const {
    std::string text;
    for (int step : steps) {
      text += at(step).kind == Kind::input
          ? rows_.load(step, "in" + std::to_string(at(step).input) + "[0]")
          : rows_.statement(step);
    }
    return text;
  }

  std::string stored(size_t result, const Statements& body, const char* where) const {
    auto value = body.stored(kernel_.program.results[result], kernel_.out[result]);
    return "out" + std::to_string(result) + "[" + where + "] = " + value + ";\n";
  }

  /// What is done for element i.
  std::string element(const Pass& pass) const {
    std::string text = element_text(
        kernel_.program,
        pass,
        elements_,
        [](int input) { return "in" + std::to_string(input) + "[i]"; },
        [&](int step) { return "k_" + elements_.name(step) + "[i]"; });
    for (int step : pass.kept) {
      text += fill("        k_$0[i] = $0;\n", {elements_.name(step)});
    }
    for (size_t i = 0; pass.writes && i < kernel_.out.size(); ++i) {
      bool each = !at(kernel_.program.results[i]).row;
      text += each ? "        " + stored(i, elements_, "i") : "";
    }
    return text;
  }

  std::string write(const Pass& pass) const {
    return "#pragma omp simd\n    for (int64_t i = 0; i < n; ++i) {\n" + element(pass) + "    }\n";
  }

  std::string fold(const Pass& pass) const {
    std::string before;
    std::string updates;
    std::string results;
    for (int step : pass.reduces) {
      auto type = rows_.held(step);
      auto& name = rows_.name(step);
      before += fill(
          "    $0 s_$1 = $2;\n", {type, name, rows_.value(at(step).args[0], at(step).operands)});
      updates += fold_text(kernel_.program, step, elements_);
      results += fill("    const $0 $1 = s_$1;\n", {type, name});
    }
    return before + "    for (int64_t i = 0; i < n; ++i) {\n" + element(pass) + updates +
        "    }\n" + results;
  }

  std::string reduce(const Pass& pass) const {
    std::string totals;
    std::string parts;
    std::string updates;
    std::string folds;
    std::string results;
    for (int step : pass.reduces) {
      auto& made = at(step);
      auto lane = lane_type(made, in_);
      auto total = total_type(made, in_);
      auto combine = std::string("row_") + made.reduction->name;
      auto& name = rows_.name(step);
      auto value = elements_.value(made.args[0], made.operands);
      totals += fill(
          "    $0 s_$1 = $2;\n",
          {total, name, neutral(*made.reduction, made.operands, total, in_)});
      parts += fill(
          "      $0 p_$1[lanes];\n      fill<$0>(p_$1, $2);\n",
          {lane, name, neutral(*made.reduction, made.operands, lane, in_)});
      updates +=
          fill("        p_$0[l] = $1::of<$2>(p_$0[l], $2($3));\n", {name, combine, lane, value});
      folds +=
          fill("      s_$0 = $1::of<$2>(s_$0, $2(folded<$1>(p_$0)));\n", {name, combine, total});
      bool mean = made.reduction->name == std::string_view("mean");
      results += fill(
          mean ? "    const $0 $1 = $0(s_$1 / double(n));\n" : "    const $0 $1 = $0(s_$1);\n",
          {rows_.held(step), name});
    }
    return totals + "    for (int64_t c = 0; c < n; c += chunk) {\n" + parts +
        "      each_block(c, c + chunk < n ? c + chunk : n,\n"
        "                 [&](int64_t begin, int64_t count) __attribute__((always_inline)) {\n"
        "#pragma omp simd\n      for (int64_t l = 0; l < count; ++l) {\n"
        "        const int64_t i = begin + l;\n" +
        element(pass) + updates + "      }\n      });\n" + folds + "    }\n" + results;
  }

  const ElementwiseText& kernel_;
  const std::vector<Step>& steps_;
  const Spelling& in_ = spelling(Language::cpp);
  Schedule plan_;
  Statements rows_; // of values of the row
  Statements elements_;
};

} // namespace

Text cpp_rows_text(const ElementwiseText& kernel) {
  auto& in = spelling(Language::cpp);
  return {prelude_text(in) + prelude_file("zmlx/kernel/lang/rows_cpp.h"), CppRows(kernel).text()};
}

size_t kept_bytes(const Program& program, int64_t n) {
  auto pitch = (static_cast<size_t>(n) * 8 + 63) / 64 * 64;
  return schedule(program, Keep::expensive).kept.size() * pitch;
}

} // namespace zmlx::lang
