// zmlx/kernel/lang/print.cpp: what stands around an elementwise kernel's statements.
#include "zmlx/kernel/lang/print.h"

#include <algorithm>

#include "zmlx/kernel/lang/statements.h"

namespace zmlx::lang {
namespace {

std::string numbered(const char* name, size_t i) {
  return name + std::to_string(i);
}

} // namespace

Text cpp_text(const ElementwiseText& kernel) {
  auto& in = spelling(Language::cpp);
  Statements body(kernel.program, in, "    ");
  auto loads = body.loads(kernel.in.size(), [](size_t i) { return numbered("in", i) + "[i]"; });
  std::string pointers;
  std::string stores;
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    auto type = "const " + type_name(kernel.in[i], in);
    pointers += fill("  $0* in$1 = static_cast<$0*>(in[$1]);\n", {type, std::to_string(i)});
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    auto type = type_name(kernel.out[i], in);
    pointers += fill("  $0* out$1 = static_cast<$0*>(out[$1]);\n", {type, std::to_string(i)});
    stores += "    " + numbered("out", i) +
        "[i] = " + body.stored(kernel.program.results[i], kernel.out[i]) + ";\n";
  }
  return {
      prelude_text(in),
      "\nextern \"C\" void zmlx_run(const void* const* in, void* const* out, int64_t n) {\n" +
          pointers + "#pragma omp simd\n  for (int64_t i = 0; i < n; ++i) {\n" + loads +
          body.text() + stores + "  }\n}\n"};
}

int pack_size(const ElementwiseText& kernel, const std::vector<bool>& packed) {
  size_t largest = 2; // packs of 16 bytes, and of 8 elements at most
  for (size_t i = 0; i < packed.size(); ++i) {
    largest = packed[i] ? std::max(largest, size_of(kernel.in[i])) : largest;
  }
  for (auto dtype : kernel.out) {
    largest = std::max(largest, size_of(dtype));
  }
  return static_cast<int>(16 / largest);
}

Text cuda_text(const ElementwiseText& kernel, const std::vector<Access>& access, int rank) {
  auto& in = spelling(Language::cuda);
  Statements body(kernel.program, in, "        ");
  std::string parameters;
  std::string pointers;
  std::string strides;
  std::string axes;
  std::string packs;
  std::string results;
  std::string stores;
  std::vector<bool> packed;
  for (size_t i = 0; i < kernel.in.size(); ++i) {
    parameters += numbered("Pointer in", i) + ", ";
    pointers += fill(
        "  const $0* __restrict__ p$1 = in$1.as<const $0>();\n",
        {type_name(kernel.in[i], in), std::to_string(i)});
    packed.push_back(access[i] == Access::contiguous);
    if (packed.back()) {
      pointers += fill("  const bool a$0 = in_packs<Size>(p$0);\n", {std::to_string(i)});
      packs +=
          fill("    const auto w$0 = load_pack<Size>(p$0, first, n, a$0);\n", {std::to_string(i)});
    }
    for (int a = 0; access[i] == Access::strided && a < rank; ++a) {
      strides += fill(", Extent s$0_$1", {std::to_string(i), std::to_string(a)});
    }
  }
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    auto n = std::to_string(i);
    parameters += "Pointer out" + n + ", ";
    pointers += fill(
        "  $0* __restrict__ q$1 = out$1.as<$0>();\n  const bool b$1 = in_packs<Size>(q$1);\n",
        {type_name(kernel.out[i], in), n});
    packs += fill("    Pack<$0, Size> o$1;\n", {type_name(kernel.out[i], in), n});
    results += fill(
        "        o$0.v[j] = $1;\n", {n, body.stored(kernel.program.results[i], kernel.out[i])});
    stores += fill("    store_pack(o$0, q$0, first, n, b$0);\n", {n});
  }
  parameters += "Extent size";
  for (int a = 1; a < rank; ++a) {
    parameters += ", Extent e" + std::to_string(a);
  }
  // Where the element is along each axis, from the last one on.
  std::string rest = "i";
  for (int a = rank - 1; a >= 0 && !strides.empty(); --a) {
    auto n = std::to_string(a);
    if (a == 0) {
      axes += fill("        const int64_t c0 = int64_t($0);\n", {rest});
    } else {
      axes += fill(
          "        const Index d$0 = Index(e$0.get());\n"
          "        const int64_t c$0 = int64_t($1 % d$0);\n"
          "        const Index r$0 = $1 / d$0;\n",
          {n, rest});
      rest = "r" + n;
    }
  }
  auto loads = body.loads(kernel.in.size(), [&](size_t i) {
    auto pointer = numbered("p", i);
    if (access[i] != Access::strided) {
      return access[i] == Access::constant ? pointer + "[0]" : numbered("w", i) + ".v[j]";
    }
    std::string place;
    for (int a = 0; a < rank; ++a) {
      place +=
          (a ? " + " : "") + fill("c$0 * s$1_$0.get()", {std::to_string(a), std::to_string(i)});
    }
    return pointer + "[" + place + "]";
  });
  return {
      prelude_text(in) + prelude_file("zmlx/kernel/lang/packs_cuda.h"),
      "\ntemplate <typename Index>\n__global__ void __launch_bounds__(256) zmlx_run(" + parameters +
          strides + ") {\n  constexpr int Size = " + std::to_string(pack_size(kernel, packed)) +
          ";\n  wait_for_predecessor();\n  start_successor();\n" + pointers +
          "  const Index n = Index(size.get());\n"
          "  const Index thread = Index(blockIdx.x) * Index(blockDim.x) + threadIdx.x;\n"
          "  const Index step = Index(gridDim.x) * Index(blockDim.x) * Size;\n"
          "  for (Index first = thread * Size; first < n; first += step) {\n" +
          packs +
          "#pragma unroll\n    for (int j = 0; j < Size; ++j) {\n"
          "      const Index i = first + j;\n      if (i < n) {\n" +
          axes + loads + body.text() + results + "      }\n    }\n" + stores + "  }\n}\n"};
}

Text metal_text(const ElementwiseText& kernel) {
  auto& in = spelling(Language::metal);
  Statements body(kernel.program, in, "");
  auto loads = body.loads(kernel.in.size(), [](size_t i) {
    return fill("in$0[elem_to_loc(i, in$0_shape, in$0_strides, in$0_ndim)]", {std::to_string(i)});
  });
  std::string stores;
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    stores += numbered("out", i) +
        "[i] = " + body.stored(kernel.program.results[i], kernel.out[i]) + ";\n";
  }
  return {
      prelude_text(in),
      "const uint i = thread_position_in_grid.x;\n" + loads + body.text() + stores};
}

} // namespace zmlx::lang
