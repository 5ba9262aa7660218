// zmlx/runtime/rowwise.cpp: the primitive behind Rowwise.
#include "zmlx/runtime/rowwise.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/print_rows.h"
#include "zmlx/runtime/broadcast.h"
#include "zmlx/runtime/copy.h"
#include "zmlx/runtime/cuda/apply.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/elementwise_state.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/expression_graph.h"
#include "zmlx/runtime/map_reduce.h"
#include "zmlx/runtime/rowwise_gpu.h"
#include "zmlx/runtime/rowwise_task.h"

namespace zmlx {

using Arrays = std::vector<mx::array>;

namespace {

/// A kernel for given dtypes, and for which inputs have one value a row.
struct SpecialisedRows : Lowered {
  explicit SpecialisedRows(Lowered made) : Lowered(std::move(made)) {}

  void compile() {
    std::call_once(once, [this] {
      auto made = lang::cpp_rows_text(text());
      library = jit::compile(made.prelude + made.kernel);
      run = reinterpret_cast<RunRows>(library->symbol("zmlx_rows"));
    });
  }
  bool is_row(size_t output) const {
    return program.steps[static_cast<size_t>(program.results[output])].row;
  }

  std::once_flag once{};
  std::shared_ptr<const jit::Library> library{};
  RunRows run = nullptr;
  RowTexts cuda_texts{};
};

} // namespace

struct Rowwise::State {
  explicit State(ElementwiseSpec s) : spec(std::move(s)) {}

  SpecialisedRows& specialise(
      const std::vector<lang::Typed>& types,
      const std::vector<bool>& rows) {
    std::vector<std::tuple<Dtype, bool, bool>> key;
    for (size_t i = 0; i < types.size(); ++i) {
      key.emplace_back(types[i].dtype, types[i].weak, rows[i]);
    }
    std::lock_guard lock(mutex_);
    auto& made = specialised_[key];
    if (!made) {
      made = std::make_unique<SpecialisedRows>(lowered(spec, types, rows));
    }
    return *made;
  }

  /// The kernel of gradients of the arguments `argnums`; those of inputs that are `repeated` over
  /// rows are float32, as they are still to be added up.
  Rowwise gradient(
      const std::vector<int>& argnums,
      const std::vector<bool>& rows,
      const std::vector<bool>& repeated) {
    std::lock_guard lock(mutex_);
    auto key = std::tuple(argnums, rows, repeated);
    auto it = gradients_.find(key);
    if (it == gradients_.end()) {
      auto made = gradient_spec(spec, argnums, rows);
      for (size_t k = 0; k < argnums.size(); ++k) {
        if (repeated[k]) {
          made.outputs[k] = lang::cast(made.outputs[k], Dtype::f32);
          made.like[k] = -1;
        }
      }
      it = gradients_.emplace(key, Rowwise(std::move(made))).first;
    }
    return it->second;
  }

  const ElementwiseSpec spec;

 private:
  std::mutex mutex_;
  std::map<std::vector<std::tuple<Dtype, bool, bool>>, std::unique_ptr<SpecialisedRows>>
      specialised_;
  std::map<std::tuple<std::vector<int>, std::vector<bool>, std::vector<bool>>, Rowwise> gradients_;
};

namespace {

/// Inputs with one value a row. Where a row is one element, all are whole rows.
std::vector<bool> rows_of(const Arrays& inputs, int n) {
  std::vector<bool> rows;
  for (auto& x : inputs) {
    rows.push_back(n != 1 && (x.ndim() == 0 || x.shape(-1) == 1));
  }
  return rows;
}

Arrays build(
    const std::shared_ptr<Rowwise::State>& state,
    const Arrays& inputs,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s);

class Rows : public mx::Primitive {
 public:
  Rows(mx::Stream s, std::shared_ptr<Rowwise::State> state, std::vector<bool> weak)
      : Primitive(s), state_(std::move(state)), weak_(std::move(weak)) {}

  const char* name() const override {
    return state_->spec.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto* same = dynamic_cast<const Rows*>(&other);
    return same && same->state_ == state_ && same->weak_ == weak_;
  }
  SpecialisedRows& specialise(const Arrays& inputs) const {
    auto shape = common_shape(state_->spec.name, inputs);
    return state_->specialise(typed(inputs, weak_), rows_of(inputs, shape.back()));
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    auto& kernel = specialise(inputs);
    std::vector<mx::Shape> shapes(
        state_->spec.outputs.size(), common_shape(state_->spec.name, inputs));
    for (size_t i = 0; i < shapes.size(); ++i) {
      shapes[i].back() = kernel.is_row(i) ? 1 : shapes[i].back();
    }
    return shapes;
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override;

  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays& outputs) override;

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums)
      override {
    auto& kernel = specialise(primals);
    auto shapes = output_shapes(primals);
    // The transpose of the gradient: linear in the cotangent, so vjp of vjp.
    Arrays zeros;
    for (size_t i = 0; i < shapes.size(); ++i) {
      zeros.push_back(mx::zeros(shapes[i], mlx_dtype(kernel.out[i]), stream()));
    }
    auto back = [&](const Arrays& g) { return vjp(primals, g, argnums, call(primals)); };
    return mx::vjp(back, zeros, tangents).second;
  }

  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes)
      override {
    auto out = call(batched(inputs, axes, stream()));
    return {out, std::vector<int>(out.size(), 0)};
  }

 private:
  Arrays call(const Arrays& inputs) {
    return build(state_, inputs, weak_, stream());
  }

  std::shared_ptr<Rowwise::State> state_;
  std::vector<bool> weak_;
};

void Rows::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  auto& kernel = specialise(inputs);
  kernel.compile();
  auto common = common_shape(state_->spec.name, inputs);
  Shape shape(common.begin(), common.end());
  Shape lead(common.begin(), common.end() - 1);
  RowTask task{kernel.library, kernel.run, lead.size(), shape[-1], 0};
  task.kept = lang::kept_bytes(kernel.program, task.n);
  auto& encoder = mx::cpu::get_command_encoder(stream());
  std::vector<Strides> strides;
  for (auto& x : inputs) {
    encoder.set_input_array(x);
    RowTask::Input in{x.data<char>(), static_cast<int64_t>(x.itemsize())};
    auto steps = strides_in(shape, x);
    bool whole = task.n == 1 || (x.ndim() && x.shape(-1) != 1);
    if (whole && task.n > 1 && steps.back() != 1) {
      in.gathered.emplace(x.data<char>(), x.itemsize(), type_of(x).shape, x.strides(), shape);
    }
    steps.pop_back();
    strides.push_back(std::move(steps));
    task.in.push_back(std::move(in));
  }
  task.axes = joined(lead, strides);
  std::vector<bool> given(inputs.size());
  for (auto& out : outputs) {
    bool donated = false;
    for (size_t i = 0; i < inputs.size() && !donated; ++i) {
      auto& in = inputs[i];
      // A row's results are written in the last pass, behind its elements at the same place.
      donated = !given[i] && in.is_donatable() && in.flags().row_contiguous &&
          in.shape() == out.shape() && in.itemsize() == out.itemsize();
      if (donated) {
        given[i] = true;
        out.copy_shared_buffer(in);
      }
    }
    if (!donated) {
      allocate(out);
    }
    encoder.set_output_array(out);
    task.out.push_back(out.data<char>());
    task.out_steps.push_back(static_cast<int64_t>(out.itemsize()) * out.shape(-1));
  }
  if (std::any_of(outputs.begin(), outputs.end(), [](auto& out) { return out.size() > 0; })) {
    encoder.dispatch(std::move(task));
  }
}

void Rows::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  auto& kernel = specialise(inputs);
  auto common = common_shape(state_->spec.name, inputs);
  Shape shape(common.begin(), common.end());
  std::vector<Strides> strides;
  for (auto& x : inputs) {
    strides.push_back(strides_in(shape, x));
  }
  if (std::all_of(outputs.begin(), outputs.end(), [](auto& out) { return out.size() == 0; })) {
    for (auto& out : outputs) {
      out.set_data(mx::allocator::malloc(0));
    }
  } else if (auto device = cuda::device()) {
    Op op;
    op.name = name();
    auto made = rows_cuda(kernel.text(), kernel.cuda_texts, shape, strides, *device);
    cuda::apply(op, made, inputs, outputs, stream());
  } else {
    // MLX's Metal kernels know the shapes of their inputs alone.
    Arrays whole;
    for (size_t i = 0; i < inputs.size(); ++i) {
      auto& x = inputs[i];
      auto& view = whole.emplace_back(common, x.dtype(), nullptr, Arrays{});
      view.copy_shared_buffer(x, {strides[i].begin(), strides[i].end()}, {}, x.data_size());
    }
    auto made = rows_metal(kernel.text(), whole, output_shapes(inputs), stream());
    made[0].primitive().eval_gpu(made[0].inputs(), outputs);
  }
}

Arrays Rows::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const std::vector<int>& argnums,
    const Arrays& outputs) {
  auto shape = common_shape(state_->spec.name, primals);
  auto inputs = primals;
  inputs.insert(inputs.end(), cotangents.begin(), cotangents.end());
  if (!state_->spec.gradients.empty()) {
    inputs.push_back(outputs[0]);
  }
  auto weak = weak_;
  weak.resize(inputs.size(), false);
  auto rows = [](const mx::Shape& of) { return Shape(of.begin(), of.end()).rows(); };
  std::vector<bool> repeated;
  for (int i : argnums) {
    repeated.push_back(rows(primals[static_cast<size_t>(i)].shape()) != rows(shape));
  }
  auto found =
      state_->gradient(argnums, rows_of(primals, shape.back()), repeated)(inputs, weak, stream());
  for (size_t k = 0; k < argnums.size(); ++k) {
    auto& x = primals[static_cast<size_t>(argnums[k])];
    found[k] = mx::astype(fitted(found[k], x.shape(), stream()), x.dtype(), stream());
  }
  return found;
}

Arrays build(
    const std::shared_ptr<Rowwise::State>& state,
    const Arrays& inputs,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) {
  auto shape = common_shape(state->spec.name, inputs);
  if (shape.empty()) {
    fail(state->spec.name.c_str(), "a row needs an axis but the inputs have none.");
  }
  auto stream = mx::to_stream(s);
  auto primitive = std::make_shared<Rows>(stream, state, weak);
  auto& kernel = primitive->specialise(inputs);
  std::vector<mx::Dtype> dtypes;
  for (size_t i = 0; i < kernel.out.size(); ++i) {
    dtypes.push_back(mlx_dtype(kernel.out[i]));
    for (auto& step : kernel.program.steps) {
      if (kernel.is_row(i) && shape.back() == 0 && step.reduction && !step.reduction->empty) {
        fail(
            state->spec.name.c_str(),
            "row_",
            step.reduction->name,
            " takes at least 1 element but got 0.");
      }
    }
  }
  if (!has_compiler(stream.device)) {
    return expression_graph(kernel.program, inputs, dtypes, true, s);
  }
  return mx::array::make_arrays(primitive->output_shapes(inputs), dtypes, primitive, inputs);
}

} // namespace

Rowwise::Rowwise(ElementwiseSpec spec) : state_(std::make_shared<State>(std::move(spec))) {}

Arrays Rowwise::operator()(
    const Arrays& inputs,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) const {
  auto out = build(state_, inputs, weak, s);
  if (!state_->spec.keepdims) {
    auto n = common_shape(state_->spec.name, inputs).back();
    auto& kernel = state_->specialise(typed(inputs, weak), rows_of(inputs, n));
    for (size_t i = 0; i < out.size(); ++i) {
      out[i] = kernel.is_row(i) ? mx::squeeze(out[i], -1, s) : out[i];
    }
  }
  return out;
}

std::string Rowwise::source(const std::string& language, const std::vector<lang::Typed>& types)
    const {
  auto text = state_->specialise(types, std::vector<bool>(types.size(), false)).text();
  auto made = lang::cpp_rows_text(text);
  switch (lang::language_named(language)) {
    case lang::Language::cuda:
      made = lang::cuda_rows_text(text, {true, 1, std::vector<bool>(types.size(), false)});
      break;
    case lang::Language::metal:
      made = lang::metal_rows_text(text);
      break;
    default:
      break;
  }
  return made.prelude + made.kernel;
}

} // namespace zmlx
