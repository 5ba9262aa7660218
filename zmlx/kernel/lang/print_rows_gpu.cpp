// zmlx/kernel/lang/print_rows_gpu.cpp: passes over a row as loops of the threads that share it.
#include "zmlx/kernel/lang/print_rows.h"

#include <algorithm>

#include "zmlx/kernel/lang/reduce.h"
#include "zmlx/kernel/lang/rows_text.h"

namespace zmlx::lang {
namespace {

/// What differs between the languages, as formats.
struct GpuRows {
  Language language;
  const char* loop; // over a thread's elements, in memory: $0 the statements, $1 before, $2 after
  const char* in_order; // over all elements
  const char* reduced; // $0 the reduction, $1 the type, $2 the value, $3 what is neutral
  const char* first; // whether a thread writes the row's results
};
constexpr GpuRows of_cuda = {
    Language::cuda,
    "  for (int64_t first = thread * Size; first < n; first += Threads * Size) {\n$1"
    "#pragma unroll\n    for (int j = 0; j < Size; ++j) {\n"
    "      const int64_t i = first + j;\n      if (i < n) {\n$0      }\n    }\n$2  }\n",
    "  for (int64_t i = 0; i < n; ++i) {\n$0  }\n",
    "reduced<$0, Threads>($2, $3)",
    "thread == 0"};
constexpr GpuRows of_metal = {
    Language::metal,
    "for (uint i = worker; i < n; i += threads) {\n$0}\n",
    "for (uint i = 0; i < n; ++i) {\n$0}\n",
    "reduced<$0>($2, $3, parts_$1, lane, group, groups)",
    "worker == 0"};
constexpr const char* in_registers =
    "#pragma unroll\n  for (int p = 0; p < Items / Size; ++p) {\n"
    "    const int first = (p * Threads + thread) * Size;\n$1"
    "#pragma unroll\n    for (int j = 0; j < Size; ++j) {\n"
    "      const int i = first + j;\n      const int k = p * Size + j;\n"
    "      if (i < n) {\n$0      }\n    }\n$2  }\n";

class Printer {
 public:
  /// `packed`: inputs of which a thread loads several neighbours at a time.
  Printer(
      const ElementwiseText& kernel,
      const GpuRows& how,
      bool registers,
      const std::string& indent,
      std::vector<bool> packed)
      : kernel_(kernel),
        steps_(kernel.program.steps),
        how_(how),
        in_(spelling(how.language)),
        registers_(registers),
        packed_(std::move(packed)),
        plan_(schedule(kernel.program, registers ? Keep::expensive_and_inputs : Keep::nothing)),
        rows_(kernel.program, in_, indent),
        elements_(kernel.program, in_, indent + (packed_.empty() ? "  " : "      ")) {}

  /// `element(input)` and `one(input)` say where an input's element and its row's value are,
  /// `out(output)` where an element goes and `out_row(output)` where a row's value does.
  template <typename Element, typename One, typename Out, typename OutRow>
  std::string text(Element element, One one, Out out, OutRow out_row) const {
    std::string body;
    for (int step : plan_.kept) {
      body += is_packed(step)
          ? ""
          : rows_.indent() + fill("$0 k_$1[Items];\n", {rows_.held(step), rows_.name(step)});
    }
    for (auto& pass : plan_.passes) {
      body += once(pass.before, one);
      const bool one_by_one = pass.in_order || packed_.empty();
      Packs packs;
      for (int step : pass.restored) {
        packs.loads +=
            is_packed(step) ? fill("  forget(w$0);\n", {std::to_string(at(step).input)}) : "";
      }
      std::string inner = element_text(
          kernel_.program,
          pass,
          elements_,
          [&](int input) {
            bool packed = !one_by_one && packed_[static_cast<size_t>(input)];
            return packed ? load(input, packs) : element(input);
          },
          [&](int step) {
            return is_packed(step) ? fill("load(w$0[p].v[j])", {std::to_string(at(step).input)})
                                   : "k_" + elements_.name(step) + "[k]";
          });
      for (int step : pass.kept) {
        inner += is_packed(step)
            ? ""
            : elements_.indent() + fill("k_$0[k] = $0;\n", {elements_.name(step)});
      }
      std::string results;
      for (int step : pass.reduces) {
        body += pass.in_order ? fold(step, inner, results) : accumulator(step, inner, results);
      }
      for (size_t i = 0; pass.writes && i < kernel_.out.size(); ++i) {
        int result = kernel_.program.results[i];
        if (!at(result).row) {
          inner += elements_.indent() + (one_by_one ? out(i) : store(i, packs)) + " = " +
              elements_.stored(result, kernel_.out[i]) + ";\n";
        }
      }
      body += packs.loads +
          fill(pass.in_order    ? how_.in_order
                   : registers_ ? in_registers
                                : how_.loop,
               {inner, packs.before, packs.after}) +
          results;
    }
    body += once(plan_.after, one);
    for (size_t i = 0; i < kernel_.out.size(); ++i) {
      int result = kernel_.program.results[i];
      if (at(result).row) {
        body += rows_.indent() + "if (" + how_.first + ") {\n" + rows_.indent() + "  " +
            out_row(i) + " = " + rows_.stored(result, kernel_.out[i]) + ";\n" + rows_.indent() +
            "}\n";
      }
    }
    return body;
  }

  /// What a reduction is accumulated in: lanes exchange at least 32 bits.
  std::string held(const Step& reduce) const {
    bool narrow = !is_floating(reduce.operands) && size_of(reduce.operands) < 4;
    return narrow ? "int32_t" : type_name(reduce.operands, in_);
  }

 private:
  const Step& at(int step) const {
    return steps_[static_cast<size_t>(step)];
  }

  template <typename One>
  std::string once(const std::vector<int>& steps, One one) const {
    std::string text;
    for (int step : steps) {
      text += at(step).kind == Kind::input ? rows_.load(step, one(at(step).input))
                                           : rows_.statement(step);
    }
    return text;
  }

  std::string fold(int step, std::string& inner, std::string& results) const {
    auto& name = rows_.name(step);
    auto type = rows_.held(step);
    inner += fold_text(kernel_.program, step, elements_);
    results += rows_.indent() + fill("const $0 $1 = s_$1;\n", {type, name});
    return rows_.indent() +
        fill("$0 s_$1 = $2;\n", {type, name, rows_.value(at(step).args[0], at(step).operands)});
  }

  /// What stands around a pass's statements where elements come and go in packs.
  struct Packs {
    std::string loads; // before the loop
    std::string before; // in it
    std::string after;
  };

  /// Adds the loads of an input; returns where its element is.
  std::string load(int input, Packs& packs) const {
    auto n = std::to_string(input);
    if (!registers_) {
      packs.before += fill("    const auto w$0 = load_pack<Size>(p$0, first, n, a$0);\n", {n});
      return "w" + n + ".v[j]";
    }
    auto& type = kernel_.in[static_cast<size_t>(input)];
    packs.loads += fill(
        "  Pack<$0, Size> w$1[Items / Size];\n"
        "  load_packs(w$1, p$1, thread * Size, Threads * Size, int(n), a$1);\n",
        {type_name(type, in_), n});
    return "w" + n + "[p].v[j]";
  }

  /// Whether the step is an input whose packs stay in registers: nothing else has to be kept.
  bool is_packed(int step) const {
    auto& made = at(step);
    return registers_ && made.kind == Kind::input && !packed_.empty() &&
        packed_[static_cast<size_t>(made.input)];
  }

  /// Adds the stores of an output; returns where its element goes.
  std::string store(size_t output, Packs& packs) const {
    auto n = std::to_string(output);
    packs.before += fill("    Pack<$0, Size> o$1;\n", {type_name(kernel_.out[output], in_), n});
    packs.after += fill(
        registers_ ? "    store_pack(o$0, q$0, first, int(n), b$0);\n"
                   : "    store_pack(o$0, q$0, first, n, b$0);\n",
        {n});
    return "o" + n + ".v[j]";
  }

  /// The accumulator's declaration; its update joins `inner`, and its result `results`.
  std::string accumulator(int step, std::string& inner, std::string& results) const {
    auto& made = at(step);
    auto& name = rows_.name(step);
    auto type = held(made);
    auto combine = std::string("row_") + made.reduction->name;
    auto own = type_name(made.operands, in_);
    auto start = neutral(*made.reduction, made.operands, own, in_);
    start = type == own ? start : type + "(" + start + ")";
    inner += elements_.indent() +
        fill("a_$0 = $1::of($2(a_$0), $2($3));\n",
             {name, combine, type, elements_.value(made.args[0], made.operands)});
    auto whole = fill(how_.reduced, {combine, type, "a_" + name, start});
    bool mean = made.reduction->name == std::string_view("mean");
    results += rows_.indent() +
        fill(mean ? "const $0 $1 = $0($2 / float(n));\n" : "const $0 $1 = $0($2);\n",
             {rows_.held(step), name, whole});
    return rows_.indent() + type + " a_" + name + " = " + start + ";\n";
  }

  const ElementwiseText& kernel_;
  const std::vector<Step>& steps_;
  const GpuRows& how_;
  const Spelling& in_;
  bool registers_;
  std::vector<bool> packed_; // empty where nothing comes in packs
  Schedule plan_;
  Statements rows_;
  Statements elements_;
};

bool is_number(const ElementwiseText& kernel, size_t input) {
  return input + kernel.numbers >= kernel.in.size();
}

std::string numbered(const char* name, size_t i) {
  return name + std::to_string(i);
}

} // namespace

int kept_values(const Program& program) {
  return static_cast<int>(schedule(program, Keep::expensive_and_inputs).kept.size());
}

Text cuda_rows_text(const ElementwiseText& kernel, const RowAccess& access) {
  auto& in = spelling(Language::cuda);
  std::vector<bool> packed;
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    auto is_whole = [&](auto& step) {
      return step.kind == Kind::input && !step.row && static_cast<size_t>(step.input) == i;
    };
    auto& steps = kernel.program.steps;
    packed.push_back(!access.strided[i] && std::any_of(steps.begin(), steps.end(), is_whole));
  }
  Printer printer(kernel, of_cuda, access.registers, "  ", packed);
  std::string parameters;
  std::string strides;
  std::string pointers;
  std::string axes;
  // Where the row is along each axis, from the last one on.
  std::string rest = "row";
  for (int a = access.rank - 1; a >= 0; --a) {
    auto n = std::to_string(a);
    axes += a == 0
        ? fill("  const int64_t c0 = $0;\n", {rest})
        : fill(
              "  const int64_t c$0 = $1 % e$0.get();\n  const int64_t r$0 = $1 / e$0.get();\n",
              {n, rest});
    rest = "r" + n;
  }
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    auto n = std::to_string(i);
    if (is_number(kernel, i)) {
      parameters += "float v" + n + ", ";
      continue;
    }
    parameters += "Pointer in" + n + ", ";
    std::string place;
    for (int a = 0; a < access.rank; ++a) {
      strides += fill(", Extent s$0_$1", {n, std::to_string(a)});
      place += fill(" + c$1 * s$0_$1.get()", {n, std::to_string(a)});
    }
    pointers += fill(
        "  const $0* __restrict__ p$1 = in$1.as<const $0>()$2;\n",
        {type_name(kernel.in[i], in), n, place});
    if (packed[i]) {
      pointers += fill("  const bool a$0 = in_packs<Size>(p$0);\n", {n});
    }
    if (access.strided[i]) {
      strides += fill(", Extent d$0", {n});
      pointers += fill("  const int64_t l$0 = d$0.get();\n", {n});
    }
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    parameters += numbered("Pointer out", i) + ", ";
    bool is_row = kernel.program.steps[static_cast<size_t>(kernel.program.results[i])].row;
    pointers += fill(
        is_row ? "  $0* __restrict__ q$1 = out$1.as<$0>() + row;\n"
               : "  $0* __restrict__ q$1 = out$1.as<$0>() + row * n;\n"
                 "  const bool b$1 = in_packs<Size>(q$1);\n",
        {type_name(kernel.out[i], in), std::to_string(i)});
  }
  parameters += "Extent rows, Extent length";
  for (int a = 1; a < access.rank; ++a) {
    parameters += ", Extent e" + std::to_string(a);
  }
  auto body = printer.text(
      [&](int i) {
        auto n = std::to_string(i);
        return "p" + n + (access.strided[static_cast<size_t>(i)] ? "[i * l" + n + "]" : "[i]");
      },
      [&](int i) {
        auto n = std::to_string(i);
        return is_number(kernel, static_cast<size_t>(i)) ? "v" + n : "p" + n + "[0]";
      },
      [](size_t i) { return numbered("q", i) + "[i]"; },
      [](size_t i) { return numbered("q", i) + "[0]"; });
  auto size = std::to_string(pack_size(kernel, packed));
  return {
      prelude_text(in) + prelude_file("zmlx/kernel/lang/packs_cuda.h") +
          prelude_file("zmlx/kernel/lang/rows_cuda.h"),
      reductions_text(kernel.program, in) +
          "\ntemplate <int Threads, int Items>\n__global__ void __launch_bounds__(Threads == 32 ? "
          "256 : Threads, Threads > 256 ? 1 : 3) zmlx_rows(" +
          parameters + strides + ") {\n  constexpr int Size = Items && Items < " + size +
          " ? Items : " + size +
          ";\n  wait_for_predecessor();\n  start_successor();\n"
          "  const int thread = Threads == 32 ? lane_index() : int(threadIdx.x);\n"
          "  const int64_t row = Threads == 32 ? int64_t(blockIdx.x) * 8 + warp_index() : "
          "int64_t(blockIdx.x);\n"
          "  if (row >= rows.get()) {\n    return;\n  }\n"
          "  const int64_t n = length.get();\n  const int32_t row_size = int32_t(n);\n" +
          axes + pointers + body + "}\n"};
}

Text metal_rows_text(const ElementwiseText& kernel) {
  auto& in = spelling(Language::metal);
  Printer printer(kernel, of_metal, false, "", {});
  std::string places;
  for (size_t i = 0; i + kernel.numbers < kernel.in.size(); ++i) {
    places += fill(
        "const int64_t b$0 = elem_to_loc(row * int64_t(n), in$0_shape, in$0_strides, in$0_ndim);\n"
        "const int64_t l$0 = in$0_strides[in$0_ndim - 1];\n",
        {std::to_string(i)});
  }
  std::vector<std::string> types;
  for (auto& step : kernel.program.steps) {
    if (step.kind == Kind::reduce) {
      auto type = printer.held(step);
      if (std::find(types.begin(), types.end(), type) == types.end()) {
        types.push_back(type);
        places += fill("threadgroup $0 parts_$0[32];\n", {type});
      }
    }
  }
  auto body = printer.text(
      [](int i) { return fill("in$0[b$0 + int64_t(i) * l$0]", {std::to_string(i)}); },
      [&](int i) {
        bool number = is_number(kernel, static_cast<size_t>(i));
        return fill(number ? "in$0" : "in$0[b$0]", {std::to_string(i)});
      },
      [](size_t i) { return numbered("out", i) + "[row * n + i]"; },
      [](size_t i) { return numbered("out", i) + "[row]"; });
  return {
      prelude_text(in) + prelude_file("zmlx/kernel/lang/rows_metal.h") +
          reductions_text(kernel.program, in),
      "const int64_t row = threadgroup_position_in_grid.x;\n"
      "const uint worker = thread_position_in_threadgroup.x;\n"
      "const uint threads = threads_per_threadgroup.x;\n"
      "const uint lane = thread_index_in_simdgroup;\n"
      "const uint group = simdgroup_index_in_threadgroup;\n"
      "const uint groups = threads / 32;\n"
      "const uint n = in0_shape[in0_ndim - 1];\nconst int32_t row_size = n;\n" +
          places + body};
}

} // namespace zmlx::lang
