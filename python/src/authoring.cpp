// python/src/authoring.cpp: text in, kernels out. Thin.
#include "authoring.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "mlx/mlx.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/fold.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/runtime/elementwise.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/map_reduce.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace zmlx {
namespace {

using Names = std::vector<std::string>;

Dtype dtype_named(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(Dtype::f32); ++i) {
    if (name == name_of(static_cast<Dtype>(i))) {
      return static_cast<Dtype>(i);
    }
  }
  fail(
      "kernel",
      "compute_dtype must be real with at most 32 bits or an integer but got ",
      name,
      ".");
}

} // namespace

void bind_authoring(nb::module_& m) {
  m.def("jit_compile_count", &jit::compile_count);
  nb::class_<Elementwise>(m, "Elementwise")
      .def(
          "__init__",
          [](Elementwise* self,
             const std::string& name,
             const Names& inputs,
             const std::string& text,
             const Names& outputs,
             const std::string& compute_dtype,
             const Names& gradients,
             const std::string& prelude,
             const std::string& header,
             bool keepdims) {
            ElementwiseSpec spec{name, inputs};
            spec.keepdims = keepdims;
            lang::Source source{text, inputs, name, "", header};
            spec.outputs = outputs.empty() ? std::vector{lang::parse(source)}
                                           : lang::parse_outputs(source, outputs);
            source.inputs.insert(source.inputs.end(), {"g", "y"});
            source.prelude = prelude;
            for (auto& gradient : gradients) {
              source.text = gradient;
              spec.gradients.push_back(lang::parse(source));
            }
            if (!compute_dtype.empty()) {
              spec.compute = dtype_named(compute_dtype);
            }
            new (self) Elementwise(std::move(spec));
          },
          "name"_a,
          "inputs"_a,
          "text"_a,
          "outputs"_a = Names(),
          "compute_dtype"_a = "",
          "gradients"_a = Names(),
          "prelude"_a = "",
          "header"_a = "",
          "keepdims"_a = true)
      .def_static(
          "folds",
          [](const std::string& name,
             const Names& inputs,
             const std::vector<std::array<std::string, 5>>& folds,
             const std::string& text,
             const std::string& compute_dtype,
             const std::string& header,
             bool keepdims) {
            std::vector<lang::FoldText> list;
            for (auto& [result, acc, init, update, combine] : folds) {
              list.push_back({result, acc, init, update, combine});
            }
            ElementwiseSpec spec{name, inputs};
            spec.outputs = {lang::parse_folds({text, inputs, name, "", header}, list)};
            spec.compute = dtype_named(compute_dtype);
            spec.like = {0};
            spec.keepdims = keepdims;
            return Elementwise(std::move(spec));
          })
      .def(
          "__call__",
          [](const Elementwise& self,
             const std::vector<mx::array>& inputs,
             const std::vector<bool>& weak) { return self(inputs, weak); },
          "inputs"_a,
          "weak"_a = std::vector<bool>())
      .def(
          "source",
          [](const Elementwise& self, const std::string& language, const Names& dtypes) {
            std::vector<Dtype> found;
            for (auto& name : dtypes) {
              found.push_back(dtype_named(name));
            }
            return self.source(language, found);
          },
          "language"_a,
          "dtypes"_a);
  nb::class_<MapReduce>(m, "MapReduce")
      .def(
          "__init__",
          [](MapReduce* self,
             const std::string& name,
             const Names& inputs,
             const std::string& text,
             const std::string& op,
             const std::string& header) {
            ElementwiseSpec spec{name, inputs};
            spec.outputs = {lang::parse({text, inputs, name, "", header})};
            new (self) MapReduce(std::move(spec), op);
          },
          "name"_a,
          "inputs"_a,
          "text"_a,
          "op"_a,
          "header"_a = "")
      .def(
          "__call__",
          [](const MapReduce& self,
             const std::vector<mx::array>& inputs,
             const std::optional<std::vector<int>>& axes,
             bool keepdims,
             const std::vector<bool>& weak) { return self(inputs, axes, keepdims, weak); },
          "inputs"_a,
          "axes"_a,
          "keepdims"_a,
          "weak"_a)
      .def("source", [](const MapReduce& self, const Names& dtypes) {
        std::vector<Dtype> found;
        for (auto& name : dtypes) {
          found.push_back(dtype_named(name));
        }
        return self.source(found);
      });
}

} // namespace zmlx
