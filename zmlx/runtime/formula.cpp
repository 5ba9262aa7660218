// zmlx/runtime/formula.cpp: a formula's text, typed once for each set of dtypes and kinds of rows,
// and bound to an op's inputs.
#include "zmlx/ops/formula.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>

#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/parse.h"
#include "zmlx/runtime/expression_graph.h"
#include "zmlx/runtime/formula_metal.h"

namespace zmlx {
namespace {

/// A formula's inputs as views of the op's, which are row-contiguous.
struct Bound {
  Formula formula;
  std::vector<std::string> names{}; // of inputs, then of numbers
  std::vector<Type> types{}; // of inputs
  std::vector<Strides> strides{}; // along the common shape's axes, of numbers too
  Shape shape{}; // the common one
};

Bound bound(Formula formula, const Types& in) {
  Bound made{std::move(formula)};
  auto& inputs = made.formula.inputs;
  std::erase_if(inputs, [&](auto& input) { return input.input >= static_cast<int>(in.size()); });
  int rank = 0;
  for (auto& input : inputs) {
    auto type = in[static_cast<size_t>(input.input)];
    if (input.length < 0) {
      input.length = type.shape.rank() ? type.shape[-1] - input.begin : 1;
    }
    if (type.shape.rank()) {
      type.shape[-1] = input.length;
    }
    made.names.push_back(input.name);
    made.types.push_back(type);
    rank = std::max(rank, type.shape.rank());
  }
  for (int a = 0; a < rank; ++a) {
    made.shape.push_back(1);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto& whole = in[static_cast<size_t>(inputs[i].input)].shape;
    auto& own = made.types[i].shape;
    auto& strides = made.strides.emplace_back(static_cast<size_t>(rank), 0);
    int64_t stride = 1;
    for (int a = own.rank() - 1; a >= 0; --a) {
      int at = rank - own.rank() + a;
      made.shape[at] = own[a] == 1 ? made.shape[at] : own[a];
      strides[static_cast<size_t>(at)] = own[a] == 1 ? 0 : stride;
      stride *= whole[a];
    }
  }
  for (auto& [name, value] : made.formula.numbers) {
    made.names.push_back(name);
    made.strides.emplace_back(static_cast<size_t>(rank), 0);
  }
  return made;
}

/// A formula for given dtypes and kinds of rows.
struct Kernel {
  lang::Program program;
  std::vector<Dtype> in;
  std::vector<Dtype> out;
  size_t numbers;
  RowTexts texts{};

  lang::ElementwiseText text() const {
    return {program, in, out, numbers};
  }
};

Kernel& kernel_of(const std::string& op, const Bound& of, Dtype out) {
  std::vector<lang::Typed> types;
  std::vector<bool> rows;
  for (auto& type : of.types) {
    types.push_back({type.dtype, false});
    rows.push_back(of.shape[-1] != 1 && (type.shape.rank() == 0 || type.shape[-1] == 1));
  }
  types.resize(of.names.size(), {Dtype::f32, true});
  rows.resize(of.names.size(), true);
  std::vector<Dtype> in;
  for (auto& type : types) {
    in.push_back(type.dtype);
  }
  static std::mutex mutex;
  using Key = std::tuple<std::string, std::string, std::vector<Dtype>, std::vector<bool>, Dtype>;
  static std::map<Key, std::unique_ptr<Kernel>> made;
  std::lock_guard lock(mutex);
  auto& kernel = made[Key(op, of.formula.text, in, rows, out)];
  if (!kernel) {
    auto value = lang::parse({of.formula.text, of.names, op});
    auto program = lang::lower({value}, of.names, types, rows);
    kernel.reset(new Kernel{std::move(program), in, {out}, of.formula.numbers.size()});
  }
  return *kernel;
}

/// What a Metal kernel reads, and the kernel.
struct Viewed {
  Arrays inputs;
  Kernel& kernel;
};

Viewed viewed(const FormulaKernel& formula, const Arrays& inputs, Dtype out, const Attrs& attrs) {
  Types in;
  for (auto& x : inputs) {
    in.push_back(type_of(x));
  }
  auto of = bound(formula.formula(in, attrs), in);
  Viewed made{{}, kernel_of(formula.op, of, out)};
  for (size_t i = 0; i < of.types.size(); ++i) {
    auto& input = of.formula.inputs[i];
    auto& x = inputs[static_cast<size_t>(input.input)];
    auto& view = made.inputs.emplace_back(mlx_shape(of.shape), x.dtype(), nullptr, Arrays{});
    auto& strides = of.strides[i];
    view.copy_shared_buffer(x, {strides.begin(), strides.end()}, {}, x.data_size(), input.begin);
    view.set_status(mx::array::Status::available);
  }
  for (auto& [name, value] : of.formula.numbers) {
    made.inputs.emplace_back(static_cast<float>(value));
  }
  return made;
}

} // namespace

bool FormulaKernel::fits(const Types& in, const Attrs& attrs) const {
  auto has_axes = [](auto& type) { return type.shape.rank() > 0; };
  auto has_elements = [](auto& type) { return type.shape.size() > 0; };
  return std::any_of(in.begin(), in.end(), has_axes) &&
      std::all_of(in.begin(), in.end(), has_elements) && !formula(in, attrs).text.empty();
}

cuda::Kernel FormulaKernel::operator()(
    const Types& in,
    const Types& out,
    const Attrs& attrs,
    const cuda::Device& device) const {
  auto made = own ? own(in, out, attrs, device) : cuda::Kernel{};
  return made || !fits(in, attrs) ? made : for_cuda(in, out[0], attrs, device);
}

cuda::Kernel FormulaKernel::for_cuda(
    const Types& in,
    const Type& out,
    const Attrs& attrs,
    const cuda::Device& device) const {
  auto of = bound(formula(in, attrs), in);
  auto& kernel = kernel_of(op, of, out.dtype);
  auto made = rows_cuda(kernel.text(), kernel.texts, of.shape, of.strides, device);
  size_t number = 0;
  for (auto& argument : made.launches[0].arguments) {
    if (argument.kind == cuda::Argument::Kind::in) {
      auto i = static_cast<size_t>(argument.index);
      auto& input = of.formula.inputs[i];
      auto begin = static_cast<size_t>(input.begin) * size_of(of.types[i].dtype);
      argument = cuda::in(input.input, begin);
    } else if (argument.kind == cuda::Argument::Kind::f32) {
      argument = cuda::f32(of.formula.numbers[number++].second);
    }
  }
  made.strided = false; // of the op's own inputs
  return made;
}

void FormulaKernel::run_metal(
    const Arrays& inputs,
    Arrays& outputs,
    const Attrs& attrs,
    const mx::Stream& s) const {
  auto [views, kernel] = viewed(*this, inputs, dtype_of(outputs[0].dtype()), attrs);
  auto made = rows_metal(kernel.text(), views, {outputs[0].shape()}, s);
  made[0].primitive().eval_gpu(made[0].inputs(), outputs);
}

FormulaMetal formula_metal(
    const FormulaKernel& formula,
    const Arrays& inputs,
    const Type& out,
    const Attrs& attrs) {
  auto [views, kernel] = viewed(formula, inputs, out.dtype, attrs);
  auto rows = metal_rows(kernel.text(), views, {mlx_shape(out.shape)});
  return {std::move(views), std::move(rows)};
}

mx::array FormulaKernel::graph(const Arrays& inputs, const Type& out, const Attrs& attrs) const {
  Types in;
  for (auto& x : inputs) {
    in.push_back(type_of(x));
  }
  auto of = bound(formula(in, attrs), in);
  auto& kernel = kernel_of(op, of, out.dtype);
  Arrays views;
  for (auto& input : of.formula.inputs) {
    auto& x = inputs[static_cast<size_t>(input.input)];
    auto begin = static_cast<int>(input.begin);
    auto end = begin + static_cast<int>(input.length);
    views.push_back(x.ndim() ? mx::take(x, mx::arange(begin, end, mx::int32), -1) : x);
  }
  for (auto& [name, value] : of.formula.numbers) {
    views.emplace_back(static_cast<float>(value));
  }
  auto y = expression_graph(kernel.program, views, {mlx_dtype(out.dtype)}, true)[0];
  return mx::reshape(y, mlx_shape(out.shape));
}

} // namespace zmlx
