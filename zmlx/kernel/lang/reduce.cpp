// zmlx/kernel/lang/reduce.cpp: the map's statements inside loops that the compiler vectorises.
#include "zmlx/kernel/lang/reduce.h"

#include <algorithm>

#include "zmlx/runtime/error.h"

namespace zmlx::lang {
namespace {

bool is(const Reduction& reduction, std::string_view name) {
  return reduction.name == name;
}

constexpr const char* text = R"(
using A = $0; // what is accumulated in
constexpr int64_t lanes = 32;

template <typename T>
ZMLX_INLINE T combine(T a, T b) {
  return $1;
}

extern "C" void zmlx_start(void* acc, int64_t n) {
  A* a = static_cast<A*>(acc);
  for (int64_t i = 0; i < n; ++i) {
    a[i] = $2;
  }
}

extern "C" void zmlx_merge(void* acc, const void* parts, int64_t n) {
  A* a = static_cast<A*>(acc);
  const A* b = static_cast<const A*>(parts);
  for (int64_t i = 0; i < n; ++i) {
    a[i] = combine<A>(a[i], b[i]);
  }
}

extern "C" void zmlx_finish(const void* acc, void* out, int64_t n, int64_t count) {
  const A* a = static_cast<const A*>(acc);
  $3* o = static_cast<$3*>(out);
  for (int64_t i = 0; i < n; ++i) {
    o[i] = $4;
  }
}

#define ZMLX_POINTERS \
$5

#define ZMLX_VALUE \
$6

extern "C" void zmlx_rows(const void* const* in, void* acc, int64_t n) {
  ZMLX_POINTERS
  A total = *static_cast<A*>(acc);
  int64_t done = 0;
  if (n >= lanes) {
    A part[lanes];
    for (int64_t l = 0; l < lanes; ++l) {
      part[l] = $2;
    }
    for (; done + lanes <= n; done += lanes) {
#pragma omp simd
      for (int64_t l = 0; l < lanes; ++l) {
        const int64_t i = done + l;
        ZMLX_VALUE
        part[l] = combine<A>(part[l], A(value));
      }
    }
    for (int64_t l = 0; l < lanes; ++l) {
      total = combine<A>(total, part[l]);
    }
  }
  for (int64_t i = done; i < n; ++i) {
    ZMLX_VALUE
    total = combine<A>(total, A(value));
  }
  *static_cast<A*>(acc) = total;
}

extern "C" void zmlx_columns(const void* const* in, void* acc, int64_t n) {
  ZMLX_POINTERS
  A* a = static_cast<A*>(acc);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    ZMLX_VALUE
    a[i] = combine<A>(a[i], A(value));
  }
}
)";

/// The lines of a macro.
std::string continued(std::string lines) {
  for (size_t at = 0; (at = lines.find('\n', at)) != std::string::npos; at += 3) {
    lines.replace(at, 1, " \\\n");
  }
  return lines;
}

bool wide(const ReduceText& kernel) {
  return kernel.reduction.adds && is_floating(kernel.out);
}

} // namespace

const Reduction& reduction_named(std::string_view name) {
  for (auto& row : reductions()) {
    if (name == row.name) {
      return row;
    }
  }
  fail("map_reduce", "op must be sum, mean, prod, max or min but got ", std::string(name), ".");
}

std::string
neutral(const Reduction& reduction, Dtype dtype, const std::string& type, const Spelling& in) {
  if (reduction.adds || is_floating(dtype) || dtype == Dtype::boolean) {
    // Of bools, true stands for the largest value.
    double start = dtype == Dtype::boolean ? reduction.start > 0 : reduction.start;
    return type + "(" + literal(start, is_floating(dtype) ? Dtype::f32 : dtype, in) + ")";
  }
  bool largest = is(reduction, "min");
  if (dtype <= Dtype::u64) {
    return largest ? fill("$0(~$0(0))", {type}) : fill("$0(0)", {type});
  }
  auto least = fill("$0(uint64_t(1) << $1)", {type, std::to_string(size_of(dtype) * 8 - 1)});
  return largest ? fill("$0(~$1)", {type, least}) : least;
}

size_t accumulator_bytes(const ReduceText& kernel) {
  return wide(kernel) ? sizeof(double) : size_of(computing(kernel.out));
}

Text reduce_text(const ReduceText& kernel) {
  auto& in = spelling(Language::cpp);
  Statements body(kernel.program, in, "    ");
  std::string pointers;
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    pointers += fill(
        "  const $0* in$1 = static_cast<const $0*>(in[$1]);\n",
        {type_name(kernel.in[i], in), std::to_string(i)});
  }
  int result = kernel.program.results[0];
  auto held = kernel.program.steps[static_cast<size_t>(result)].type.dtype;
  auto values =
      body.loads(kernel.in.size(), [](size_t i) { return "in" + std::to_string(i) + "[i]"; }) +
      body.text() + "    const auto value = " + body.value(result, held) + ";\n";
  auto lane = type_name(computing(kernel.out), in);
  auto out = type_name(kernel.out, in);
  auto made = is(kernel.reduction, "mean") ? "float(a[i] / A(count))" : lane + "(a[i])";
  return {
      prelude_text(in),
      fill(
          text,
          {wide(kernel) ? "double" : lane,
           fill(kernel.reduction.combine, {"a", "b"}),
           neutral(kernel.reduction, computing(kernel.out), "A", in),
           out,
           fill(in.store, {made, out}),
           continued(pointers),
           continued(values)})};
}

} // namespace zmlx::lang
