// python/src/ext.cpp: the extension module: ops, compile, rewrite and the patched model's runner.
// Thin.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "authoring.h"
#include "metal.h"
#include "mlx/mlx.h"
#include "mlx/version.h"
#include "runner.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/plan/compile.h"
#include "zmlx/plan/execute.h"
#include "zmlx/runtime/bandwidth.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/fused.h"
#include "zmlx/runtime/team.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace zmlx;

namespace {

Attr attr_of(nb::handle value) {
  if (nb::isinstance<nb::bool_>(value) || nb::isinstance<nb::int_>(value)) {
    return nb::cast<int64_t>(value);
  }
  if (nb::isinstance<nb::float_>(value)) {
    return nb::cast<double>(value);
  }
  if (nb::isinstance<nb::str>(value)) {
    return nb::cast<std::string>(value);
  }
  return nb::cast<std::vector<int64_t>>(value);
}

Attrs attrs_of(const nb::dict& items) {
  Attrs attrs;
  for (auto [name, value] : items) {
    attrs.set(nb::cast<std::string>(name), attr_of(value));
  }
  return attrs;
}

/// An op called from Python with a tuple and a dictionary.
class Caller {
 public:
  explicit Caller(const Op& op) : op_(op) {
    const bool any_number = !op.args.empty() && op.args.back().front() == '*';
    inputs_ = any_number ? -1 : static_cast<int64_t>(op.args.size());
    for (auto& parameter : op.parameters) {
      if (parameter.otherwise) {
        defaults_.set(parameter.name, *parameter.otherwise);
      }
    }
  }

  /// The result of a call that gives every array by position and every attribute by name; None for
  /// any other, which the caller has to sort out.
  nb::object operator()(const nb::tuple& args, const nb::dict& kwargs) const {
    if (inputs_ >= 0 && static_cast<int64_t>(args.size()) != inputs_) {
      return nb::none();
    }
    Arrays inputs;
    inputs.reserve(args.size());
    for (nb::handle arg : args) {
      if (!nb::isinstance<mx::array>(arg)) {
        return nb::none();
      }
      inputs.push_back(*nb::inst_ptr<mx::array>(arg));
    }
    Attrs attrs = defaults_;
    size_t given = 0;
    for (auto& parameter : op_.parameters) {
      PyObject* value =
          kwargs.empty() ? nullptr : PyDict_GetItemString(kwargs.ptr(), parameter.name.c_str());
      if (!value) {
        if (!parameter.otherwise) {
          return nb::none();
        }
        continue;
      }
      ++given;
      const bool real = parameter.otherwise && std::holds_alternative<double>(*parameter.otherwise);
      if (real && !PyFloat_Check(value)) {
        return nb::none();
      }
      attrs.set(parameter.name, attr_of(value));
    }
    if (given != kwargs.size()) {
      return nb::none();
    }
    auto outputs = apply(op_, inputs, attrs);
    if (outputs.size() == 1) {
      return nb::cast(std::move(outputs[0]));
    }
    nb::list list;
    for (auto& output : outputs) {
      list.append(std::move(output));
    }
    return nb::tuple(list);
  }

 private:
  const Op& op_;
  int64_t inputs_; // -1: any number
  Attrs defaults_;
};

RewriteOptions options_of(
    const std::vector<std::string>& include,
    const std::vector<std::string>& exclude,
    bool exact,
    const std::string& activations) {
  RewriteOptions options;
  options.include = include;
  options.exclude = exclude;
  options.exact = exact;
  options.activations = activations;
  return options;
}

int runner_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<Runner>(self)->traverse(visit, arg) : 0;
}

int runner_clear(PyObject* self) {
  nb::inst_ptr<Runner>(self)->clear();
  return 0;
}

PyType_Slot runner_slots[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(runner_traverse)},
    {Py_tp_clear, reinterpret_cast<void*>(runner_clear)},
    {0, nullptr},
};

} // namespace

NB_MODULE(_ext, m) {
  nb::module_::import_("mlx.core");

  m.attr("mlx_version") = std::to_string(MLX_VERSION_MAJOR) + '.' +
      std::to_string(MLX_VERSION_MINOR) + '.' + std::to_string(MLX_VERSION_PATCH);
  m.def("loaded_mlx_version", [] { return std::string(mx::version()); });

  m.def("op_names", [] {
    std::vector<std::string> names;
    for (auto* op : all_ops()) {
      names.push_back(op->name);
    }
    return names;
  });
  m.def("op_args", [](const std::string& name) { return op_named(name).args; });
  m.def("op_doc", [](const std::string& name) { return op_named(name).doc; });
  m.def("function_names", [] {
    std::vector<std::string> names;
    for (auto* op : all_ops()) {
      if (op->is_function) {
        names.push_back(op->name);
      }
    }
    return names;
  });
  m.def("op_parameters", [](const std::string& name) {
    nb::list list;
    for (auto& parameter : op_named(name).parameters) {
      nb::object otherwise = parameter.otherwise ? nb::cast(*parameter.otherwise) : nb::none();
      list.append(nb::make_tuple(
          parameter.name, parameter.doc, parameter.otherwise.has_value(), otherwise));
    }
    return list;
  });
  m.def(
      "apply",
      [](const std::string& name, const Arrays& inputs, const nb::dict& attrs) {
        return apply(op_named(name), inputs, attrs_of(attrs));
      },
      "name"_a,
      "inputs"_a,
      "attrs"_a = nb::dict());
  m.def(
      "caller",
      [](const std::string& name) {
        return nb::cpp_function(
            [call = Caller(op_named(name))](const nb::tuple& args, const nb::dict& kwargs) {
              return call(args, kwargs);
            });
      },
      "name"_a);
  m.def(
      "node",
      [](const std::string& name, const Arrays& inputs, const nb::dict& attrs) {
        return node(op_named(name), inputs, attrs_of(attrs));
      },
      "name"_a,
      "inputs"_a,
      "attrs"_a = nb::dict());
  m.def("pattern_names", [] { return pattern_names(); });
  m.def(
      "rewrite", [](const Arrays& arrays) { return rewrite(arrays); }, "arrays"_a);
  m.def(
      "compile",
      [](std::function<Arrays(const Arrays&)> fn,
         const std::vector<std::string>& include,
         const std::vector<std::string>& exclude,
         bool exact,
         const std::string& activations) {
        return compile(std::move(fn), options_of(include, exclude, exact, activations));
      },
      "fn"_a,
      "include"_a = std::vector<std::string>(),
      "exclude"_a = std::vector<std::string>(),
      "exact"_a = false,
      "activations"_a = "exact");
  m.def("num_threads", [] { return Team::instance().size(); });
  m.def("cpu_kernels", [] {
    std::vector<std::string> names{cpu::portable_matmul()->name};
    if (auto* bf16 = cpu::bf16_matmul()) {
      names.emplace_back(bf16->name);
    }
    if (auto* amx = cpu::amx_bf16_matmul()) {
      names.emplace_back(amx->name);
    }
    return names;
  });
  m.def("why_no_cuda", [] { return cuda::why_not(); });
  m.def("read_bandwidth", &read_bandwidth, "bytes"_a, "repeats"_a);
  nb::class_<Streams>(m, "Streams")
      .def(nb::init<size_t>(), "bytes"_a)
      .def("seconds", &Streams::seconds, "reads"_a, "write"_a);
  m.def("launch_seconds", &launch_seconds, "repeats"_a);
  m.def("barrier_seconds", &barrier_seconds, "repeats"_a);
  m.def("run_counts", [] {
    auto counts = run_counts();
    nb::dict items;
    items["in_place"] = counts.in_place;
    items["copied"] = counts.copied;
    items["runs"] = counts.runs;
    items["seconds"] = counts.seconds;
    return items;
  });

  bind_authoring(m);
  bind_metal(m);

  nb::class_<RewriteReport>(m, "RewriteReport")
      .def_ro("fired", &RewriteReport::fired)
      .def_ro("int8", &RewriteReport::int8)
      .def_ro("exact", &RewriteReport::exact)
      .def_ro("nodes_before", &RewriteReport::nodes_before)
      .def_ro("nodes_after", &RewriteReport::nodes_after);

  nb::class_<Runner>(m, "Runner", nb::type_slots(runner_slots))
      .def(
          "__init__",
          [](Runner* self,
             nb::object trace_step,
             nb::object cache_type,
             nb::object batch_cache_type,
             nb::list entries,
             nb::list buffer_types,
             const std::vector<std::string>& include,
             const std::vector<std::string>& exclude,
             bool exact,
             const std::string& activations) {
            new (self) Runner(
                std::move(trace_step),
                std::move(cache_type),
                std::move(batch_cache_type),
                std::move(entries),
                std::move(buffer_types),
                options_of(include, exclude, exact, activations));
          },
          "trace_step"_a,
          "cache_type"_a,
          "batch_cache_type"_a,
          "entries"_a,
          "buffer_types"_a,
          "include"_a,
          "exclude"_a,
          "exact"_a,
          "activations"_a)
      .def("__call__", &Runner::call, "tokens"_a, "cache"_a.none())
      .def("prepare", &Runner::prepare, "batch"_a, "tokens"_a, "padded"_a = false)
      .def("explain", &Runner::explain, "batch"_a, "tokens"_a, "padded"_a = false, "target"_a = "")
      .def_prop_ro("report", &Runner::report)
      .def_ro("reasons", &Runner::reasons)
      .def_ro("reason", &Runner::reason)
      .def_ro("bytes_per_run", &Runner::bytes_per_run)
      .def_ro("launches", &Runner::launches)
      .def_ro("device", &Runner::device)
      .def_ro("seconds", &Runner::seconds);
}
