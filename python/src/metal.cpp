// python/src/metal.cpp: bodies of Metal functions in, kernels out. Thin.
#include "metal.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "mlx/mlx.h"
#include "zmlx/runtime/metal_kernel.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace zmlx {
namespace {

using Names = std::vector<std::string>;
using Arrays = std::vector<mx::array>;
using Ints = std::vector<std::vector<int>>;

MetalCall call_of(
    const std::vector<std::pair<std::string, std::variant<bool, int, mx::Dtype>>>& arguments,
    const std::array<int, 3>& grid,
    const std::array<int, 3>& threadgroup,
    const Ints& shapes,
    const std::vector<mx::Dtype>& dtypes,
    std::optional<float> init_value) {
  MetalCall call{{}, dtypes, grid, threadgroup, arguments, init_value};
  for (auto& shape : shapes) {
    call.output_shapes.emplace_back(shape.begin(), shape.end());
  }
  return call;
}

} // namespace

void bind_metal(nb::module_& m) {
  nb::class_<MetalKernel>(m, "MetalKernel")
      .def(
          "__init__",
          [](MetalKernel* self,
             const std::string& name,
             const Names& inputs,
             const Names& outputs,
             const std::string& source,
             const std::string& header,
             bool ensure_row_contiguous,
             bool atomic_outputs) {
            new (self) MetalKernel(
                {name, inputs, outputs, source, header, atomic_outputs}, ensure_row_contiguous);
          },
          "name"_a,
          "input_names"_a,
          "output_names"_a,
          "source"_a,
          "header"_a,
          "ensure_row_contiguous"_a,
          "atomic_outputs"_a)
      .def(
          "__call__",
          [](const MetalKernel& self,
             const Arrays& inputs,
             const std::vector<std::pair<std::string, std::variant<bool, int, mx::Dtype>>>&
                 template_,
             const std::array<int, 3>& grid,
             const std::array<int, 3>& threadgroup,
             const Ints& output_shapes,
             const std::vector<mx::Dtype>& output_dtypes,
             std::optional<float> init_value,
             const std::variant<std::monostate, mx::Stream, mx::Device>& stream) {
            mx::StreamOrDevice s;
            std::visit([&](auto& v) { s = v; }, stream);
            auto call =
                call_of(template_, grid, threadgroup, output_shapes, output_dtypes, init_value);
            return self(inputs, call, s);
          },
          "inputs"_a,
          "template"_a,
          "grid"_a,
          "threadgroup"_a,
          "output_shapes"_a,
          "output_dtypes"_a,
          "init_value"_a = nb::none(),
          "stream"_a = nb::none())
      .def(
          "source",
          [](const MetalKernel& self,
             const std::string& language,
             const Arrays& inputs,
             const std::vector<std::pair<std::string, std::variant<bool, int, mx::Dtype>>>&
                 template_,
             const std::vector<mx::Dtype>& output_dtypes) {
            Ints shapes(output_dtypes.size());
            auto call = call_of(template_, {1, 1, 1}, {1, 1, 1}, shapes, output_dtypes, {});
            return self.source(language, inputs, call);
          },
          "language"_a,
          "inputs"_a,
          "template"_a,
          "output_dtypes"_a);
}

} // namespace zmlx
