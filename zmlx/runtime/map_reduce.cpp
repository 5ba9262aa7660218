// zmlx/runtime/map_reduce.cpp: the primitive behind MapReduce: along rows where the reduced axes
// are innermost in memory, else over columns; what it adds up does not depend on the threads.
#include "zmlx/runtime/map_reduce.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/transforms_impl.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/reduce.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/reduce_task.h"

namespace zmlx {

using Arrays = std::vector<mx::array>;

namespace {

/// A kernel for given dtypes.
struct SpecialisedReduction {
  lang::Program program;
  std::vector<Dtype> in;
  Dtype out;
  const lang::Reduction& reduction;
  std::once_flag once{};
  ReduceFunctions functions{};

  lang::ReduceText text() const {
    return {program, in, out, reduction};
  }
  void compile() {
    std::call_once(once, [this] {
      auto made = lang::reduce_text(text());
      auto library = jit::compile(made.prelude + made.kernel);
      auto find = [&](auto& function, const char* name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(library->symbol(name));
      };
      find(functions.start, "zmlx_start");
      find(functions.rows, "zmlx_rows");
      find(functions.columns, "zmlx_columns");
      find(functions.merge, "zmlx_merge");
      find(functions.finish, "zmlx_finish");
      functions.library = library;
    });
  }
};

} // namespace

struct MapReduce::State {
  State(ElementwiseSpec s, const lang::Reduction& r)
      : spec(std::move(s)), map(spec), reduction(r) {}

  SpecialisedReduction& specialise(const std::vector<lang::Typed>& types);
  mx::array reduced(
      const mx::array& x,
      const std::vector<int>& axes,
      bool keepdims,
      mx::StreamOrDevice s) const;

  const ElementwiseSpec spec;
  const Elementwise map;
  const lang::Reduction& reduction;

 private:
  std::mutex mutex_;
  std::map<std::vector<std::pair<Dtype, bool>>, std::unique_ptr<SpecialisedReduction>> specialised_;
};

namespace {

mx::Shape common_shape(const Arrays& inputs) {
  mx::Shape shape;
  for (auto& x : inputs) {
    shape = mx::broadcast_shapes(shape, x.shape());
  }
  return shape;
}

class MapReduced : public mx::Primitive {
 public:
  MapReduced(
      mx::Stream s,
      std::shared_ptr<MapReduce::State> state,
      std::vector<bool> weak,
      std::vector<int> axes,
      bool keepdims)
      : Primitive(s),
        state_(std::move(state)),
        weak_(std::move(weak)),
        axes_(std::move(axes)),
        keepdims_(keepdims) {}

  const char* name() const override {
    return state_->spec.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto* same = dynamic_cast<const MapReduced*>(&other);
    return same && same->state_ == state_ && same->weak_ == weak_ && same->axes_ == axes_ &&
        same->keepdims_ == keepdims_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    auto shape = common_shape(inputs);
    mx::Shape out;
    for (size_t a = 0; a < shape.size(); ++a) {
      if (!is_reduced(static_cast<int>(a))) {
        out.push_back(shape[a]);
      } else if (keepdims_) {
        out.push_back(1);
      }
    }
    return {out};
  }
  std::vector<lang::Typed> types(const Arrays& inputs) const {
    std::vector<lang::Typed> out;
    for (size_t i = 0; i < inputs.size(); ++i) {
      out.push_back({type_of(inputs[i]).dtype, i < weak_.size() && weak_[i]});
    }
    return out;
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays&, Arrays&) override {
    fail(name(), "there is no GPU kernel; use MapReduce, which falls back to MLX.");
  }

  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays&) override {
    return mx::vjp(of(primals, argnums), chosen(primals, argnums), cotangents).second;
  }
  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums)
      override {
    return mx::jvp(of(primals, argnums), chosen(primals, argnums), tangents).second;
  }
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes)
      override {
    auto [in, out] = mx::detail::vmap_trace([&](auto& x) { return plain(x); }, inputs, axes);
    return {mx::detail::vmap_replace(inputs, in, out, axes, {0}), {0}};
  }

  /// The kernel and then MLX's reduction: what is differentiated.
  Arrays plain(const Arrays& inputs) {
    return {state_->reduced(state_->map(inputs, weak_, stream())[0], axes_, keepdims_, stream())};
  }

 private:
  bool is_reduced(int axis) const {
    return std::find(axes_.begin(), axes_.end(), axis) != axes_.end();
  }
  static Arrays chosen(const Arrays& primals, const std::vector<int>& argnums) {
    Arrays out;
    for (int i : argnums) {
      out.push_back(primals[static_cast<size_t>(i)]);
    }
    return out;
  }
  std::function<Arrays(const Arrays&)> of(const Arrays& primals, const std::vector<int>& argnums) {
    return [this, &primals, &argnums](const Arrays& some) {
      Arrays all = primals;
      for (size_t i = 0; i < argnums.size(); ++i) {
        all[static_cast<size_t>(argnums[i])] = some[i];
      }
      return plain(all);
    };
  }

  std::shared_ptr<MapReduce::State> state_;
  std::vector<bool> weak_;
  std::vector<int> axes_; // from 0, sorted
  bool keepdims_;
};

void MapReduced::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  auto& kernel = state_->specialise(types(inputs));
  kernel.compile();
  auto shape = common_shape(inputs);
  auto rank = static_cast<int>(shape.size());
  // The axis along which an input of the full size runs evenly decides the order.
  int innermost = -1;
  for (auto& x : inputs) {
    for (int a = 0; a < static_cast<int>(x.ndim()) && x.size() > 1 && innermost < 0; ++a) {
      auto stride = x.strides()[static_cast<size_t>(a)];
      if (x.shape(a) > 1 && (stride == 1 || stride == -1)) {
        innermost = a + rank - static_cast<int>(x.ndim());
      }
    }
  }
  ReduceTask task{kernel.functions};
  task.columns = innermost >= 0 && !is_reduced(innermost);
  std::vector<int> order;
  for (bool reduced : {task.columns, !task.columns}) {
    for (int a = 0; a < rank; ++a) {
      if (is_reduced(a) == reduced) {
        order.push_back(a);
      }
    }
  }
  Shape as;
  for (int a : order) {
    int64_t extent = shape[static_cast<size_t>(a)];
    as.push_back(extent);
    (is_reduced(a) ? task.reduced : task.kept) *= extent;
  }
  auto& encoder = mx::cpu::get_command_encoder(stream());
  for (auto& x : inputs) {
    encoder.set_input_array(x);
    Shape own;
    std::vector<int64_t> strides;
    for (int a : order) {
      int axis = a - (rank - static_cast<int>(x.ndim()));
      own.push_back(axis < 0 ? 1 : x.shape(axis));
      strides.push_back(axis < 0 ? 0 : x.strides()[static_cast<size_t>(axis)]);
    }
    task.in.emplace_back(x.data<char>(), x.itemsize(), own, strides, as);
  }
  auto& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  encoder.set_output_array(out);
  task.out = out.data<char>();
  task.out_bytes = static_cast<int64_t>(out.itemsize());
  task.acc_bytes = static_cast<int64_t>(lang::accumulator_bytes(kernel.text()));
  if (out.size()) {
    encoder.dispatch(std::move(task));
  }
}

} // namespace

mx::array MapReduce::State::reduced(
    const mx::array& x,
    const std::vector<int>& axes,
    bool keepdims,
    mx::StreamOrDevice s) const {
  using Call = mx::array (*)(const mx::array&, const std::vector<int>&, bool, mx::StreamOrDevice);
  static const std::map<std::string, Call> calls = {
      {"sum", mx::sum}, {"mean", mx::mean}, {"prod", mx::prod}, {"max", mx::max}, {"min", mx::min}};
  return calls.at(reduction.name)(x, axes, keepdims, s);
}

SpecialisedReduction& MapReduce::State::specialise(const std::vector<lang::Typed>& types) {
  std::vector<std::pair<Dtype, bool>> key;
  for (auto& type : types) {
    key.emplace_back(type.dtype, type.weak);
  }
  std::lock_guard lock(mutex_);
  auto& made = specialised_[key];
  if (!made) {
    auto program = lang::lower(spec.outputs, spec.inputs, types);
    auto mapped = program.steps[static_cast<size_t>(program.results[0])].type.dtype;
    std::vector<Dtype> in;
    for (auto& type : types) {
      in.push_back(type.dtype);
    }
    // MLX says what dtype a reduction has.
    auto like = reduced(mx::zeros({2}, mlx_dtype(mapped)), {0}, false, mx::Device::cpu);
    made.reset(new SpecialisedReduction{std::move(program), in, dtype_of(like.dtype()), reduction});
  }
  return *made;
}

MapReduce::MapReduce(ElementwiseSpec map, const std::string& op)
    : state_(std::make_shared<State>(std::move(map), lang::reduction_named(op))) {}

mx::array MapReduce::operator()(
    const Arrays& inputs,
    const std::optional<std::vector<int>>& axes,
    bool keepdims,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) const {
  auto& name = state_->spec.name;
  auto shape = state_->map(inputs, weak, s)[0].shape(); // checks the inputs
  auto rank = static_cast<int>(shape.size());
  std::vector<int> over;
  int64_t count = 1;
  for (int a = 0; a < rank && !axes; ++a) {
    over.push_back(a);
  }
  for (int axis : axes.value_or(std::vector<int>{})) {
    if (axis < -rank || axis >= rank) {
      fail(
          name.c_str(),
          "axis must be from ",
          -rank,
          " to ",
          rank - 1,
          " for shapes that broadcast to ",
          rank,
          rank == 1 ? " axis but got " : " axes but got ",
          axis,
          ".");
    }
    over.push_back(axis < 0 ? axis + rank : axis);
  }
  std::sort(over.begin(), over.end());
  if (std::adjacent_find(over.begin(), over.end()) != over.end()) {
    fail(name.c_str(), "axes must differ but one is there twice.");
  }
  for (int a : over) {
    count *= shape[static_cast<size_t>(a)];
  }
  if (count == 0 && !state_->reduction.empty) {
    fail(name.c_str(), state_->reduction.name, " takes at least 1 element but got 0.");
  }
  auto stream = mx::to_stream(s);
  auto primitive = std::make_shared<MapReduced>(stream, state_, weak, over, keepdims);
  if (stream.device != mx::Device::cpu || !jit::available()) {
    return primitive->plain(inputs)[0];
  }
  auto& kernel = state_->specialise(primitive->types(inputs));
  return mx::array(primitive->output_shapes(inputs)[0], mlx_dtype(kernel.out), primitive, inputs);
}

std::string MapReduce::source(const std::vector<Dtype>& dtypes) const {
  std::vector<lang::Typed> types;
  for (auto dtype : dtypes) {
    types.push_back({dtype, false});
  }
  auto made = lang::reduce_text(state_->specialise(types).text());
  return made.prelude + made.kernel;
}

} // namespace zmlx
