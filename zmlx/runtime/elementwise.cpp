// zmlx/runtime/elementwise.cpp: the primitive behind Elementwise: blocks of contiguous elements,
// gathered where an input is strided.
#include "zmlx/runtime/elementwise.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iostream>
#include <map>
#include <mutex>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/print.h"
#include "zmlx/runtime/broadcast.h"
#include "zmlx/runtime/copy.h"
#include "zmlx/runtime/cuda/apply.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/elementwise_state.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/expression_graph.h"
#include "zmlx/runtime/gather.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/team.h"

namespace zmlx {

using Arrays = std::vector<mx::array>;

namespace {

constexpr int64_t block = 1024; // elements: what a few inputs' blocks need fits the first cache

struct Task {
  std::shared_ptr<const jit::Library> library;
  Run run;
  std::vector<Strided> in;
  std::vector<void*> out;
  std::vector<size_t> out_sizes;
  int64_t size;

  void operator()() const {
    Team& team = Team::instance();
    auto part = [&](Member& member) { work(member.split(size, 64)); };
    // Waking the team costs more than a short kernel.
    if (size < 16 * block) {
      team.run_alone(part);
    } else {
      team.run(part);
    }
  }

  void work(Range part) const {
    bool direct = std::all_of(in.begin(), in.end(), [](auto& x) { return x.contiguous(); });
    std::vector<const void*> from(in.size());
    std::vector<void*> to(out.size());
    std::vector<uint64_t> memory(direct ? 0 : in.size() * static_cast<size_t>(block));
    int64_t length = direct ? part.end - part.begin : block;
    for (int64_t i = part.begin; i < part.end; i += length) {
      int64_t n = std::min(length, part.end - i);
      for (size_t k = 0; k < in.size(); ++k) {
        from[k] = in[k].contiguous() ? in[k].at(i) : memory.data() + k * static_cast<size_t>(block);
        // One value for all elements stays where the first block has put it.
        if (!in[k].contiguous() && (i == part.begin || !in[k].constant())) {
          in[k].gather(i, in[k].constant() ? block : n, const_cast<void*>(from[k]));
        }
      }
      for (size_t k = 0; k < out.size(); ++k) {
        to[k] = static_cast<char*>(out[k]) + static_cast<size_t>(i) * out_sizes[k];
      }
      run(from.data(), to.data(), n);
    }
  }
};

class Authored : public mx::Primitive {
 public:
  Authored(mx::Stream s, std::shared_ptr<Elementwise::State> state, std::vector<bool> weak)
      : Primitive(s), state_(std::move(state)), weak_(std::move(weak)) {}

  const char* name() const override {
    return state_->spec.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto* same = dynamic_cast<const Authored*>(&other);
    return same && same->state_ == state_ && same->weak_ == weak_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    return {state_->spec.outputs.size(), common_shape(state_->spec.name, inputs)};
  }
  std::vector<lang::Typed> types(const Arrays& inputs) const {
    return typed(inputs, weak_);
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    auto& kernel = state_->specialise(types(inputs));
    kernel.compile();
    auto size = static_cast<int64_t>(outputs[0].size());
    Task task{kernel.library, kernel.run, {}, {}, {}, size};
    auto& encoder = mx::cpu::get_command_encoder(stream());
    auto shape = type_of(outputs[0]).shape;
    for (auto& in : inputs) {
      encoder.set_input_array(in);
      task.in.emplace_back(in.data<char>(), in.itemsize(), type_of(in).shape, in.strides(), shape);
    }
    std::vector<bool> given(inputs.size());
    for (auto& out : outputs) {
      bool donated = false;
      for (size_t i = 0; i < inputs.size() && !donated; ++i) {
        auto& in = inputs[i];
        // Its elements are read before those of the output at the same place are written.
        donated = !given[i] && in.is_donatable() && in.flags().row_contiguous &&
            in.nbytes() == out.nbytes() && in.itemsize() == out.itemsize();
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
      task.out_sizes.push_back(out.itemsize());
    }
    if (task.size) {
      encoder.dispatch(std::move(task));
    }
  }
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override {
    auto& kernel = state_->specialise(types(inputs));
    if (outputs[0].size() == 0) {
      for (auto& out : outputs) {
        out.set_data(mx::allocator::malloc(0));
      }
    } else if (auto device = cuda::device()) {
      Op op;
      op.name = name();
      auto shape = type_of(outputs[0]).shape;
      std::vector<Strides> strides;
      for (auto& x : inputs) {
        strides.push_back(strides_in(shape, x));
      }
      auto made = elementwise_cuda(kernel.text(), kernel.cuda_texts, shape, strides, *device);
      cuda::apply(op, made, inputs, outputs, stream());
    } else {
      auto made = elementwise_metal(kernel.text(), inputs, outputs[0].shape(), stream());
      made[0].primitive().eval_gpu(made[0].inputs(), outputs);
    }
  }

  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays& outputs) override {
    auto inputs = primals;
    inputs.insert(inputs.end(), cotangents.begin(), cotangents.end());
    if (!state_->spec.gradients.empty()) {
      inputs.push_back(outputs[0]);
    }
    auto weak = weak_;
    weak.resize(inputs.size(), false);
    auto found = state_->gradient(argnums)(inputs, weak, stream());
    for (size_t k = 0; k < argnums.size(); ++k) {
      auto& primal = primals[static_cast<size_t>(argnums[k])];
      found[k] = fitted(found[k], primal.shape(), stream());
    }
    return found;
  }

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums)
      override {
    auto& kernel = state_->specialise(types(primals));
    // The transpose of the gradient: linear in the cotangent, so vjp of vjp.
    auto shape = common_shape(state_->spec.name, primals);
    Arrays zeros;
    for (auto dtype : kernel.out) {
      zeros.push_back(mx::zeros(shape, mlx_dtype(dtype), stream()));
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
  Arrays call(const Arrays& inputs);

  std::shared_ptr<Elementwise::State> state_;
  std::vector<bool> weak_;
};

Arrays build(
    const std::shared_ptr<Elementwise::State>& state,
    const Arrays& inputs,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) {
  auto shape = common_shape(state->spec.name, inputs);
  auto stream = mx::to_stream(s);
  auto primitive = std::make_shared<Authored>(stream, state, weak);
  auto& kernel = state->specialise(primitive->types(inputs));
  std::vector<mx::Dtype> dtypes;
  for (auto dtype : kernel.out) {
    dtypes.push_back(mlx_dtype(dtype));
  }
  if (!has_compiler(stream.device)) {
    return expression_graph(kernel.program, inputs, dtypes, false, s);
  }
  bool on_metal = stream.device != mx::Device::cpu && mx::metal::is_available();
  if (on_metal) {
    // MLX's Metal kernels know the shapes of their inputs alone, and take scalars another way.
    auto whole = shape.empty() ? mx::Shape{1} : shape;
    auto read = inputs;
    for (auto& x : read) {
      x = mx::broadcast_to(x, whole, s);
    }
    auto out = mx::array::make_arrays(
        std::vector<mx::Shape>(dtypes.size(), whole), dtypes, primitive, read);
    for (auto& x : out) {
      x = mx::reshape(x, shape, s);
    }
    return out;
  }
  return mx::array::make_arrays(
      std::vector<mx::Shape>(dtypes.size(), shape), dtypes, primitive, inputs);
}

Arrays Authored::call(const Arrays& inputs) {
  return build(state_, inputs, weak_, stream());
}

} // namespace

Elementwise::Elementwise(ElementwiseSpec spec) : state_(std::make_shared<State>(std::move(spec))) {}

Arrays Elementwise::operator()(
    const Arrays& inputs,
    const std::vector<bool>& weak,
    mx::StreamOrDevice s) const {
  auto& spec = state_->spec;
  if (inputs.size() != spec.inputs.size()) {
    fail(
        spec.name.c_str(),
        "takes ",
        spec.inputs.size(),
        spec.inputs.size() == 1 ? " input but got " : " inputs but got ",
        inputs.size(),
        ".");
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto dtype = inputs[i].dtype();
    if (dtype == mx::float64 || dtype == mx::complex64) {
      fail(spec.name.c_str(), spec.inputs[i], " must be real with at most 32 bits or an integer.");
    }
  }
  return state_->rows ? (*state_->rows)(inputs, weak, s) : build(state_, inputs, weak, s);
}

bool has_compiler(const mx::Device& device) {
  bool on_cpu = device == mx::Device::cpu;
  if (on_cpu ? jit::available() : mx::metal::is_available() || cuda::device()) {
    return true;
  }
  static std::once_flag once;
  std::call_once(once, [&] {
    std::cerr << "[zmlx] kernels run as plain MLX ops: "
              << (on_cpu ? "there is no C++ compiler (set ZMLX_CXX)" : cuda::why_not()) << ".\n";
  });
  return false;
}

static std::string together(const lang::Text& text) {
  return text.prelude + text.kernel;
}

std::string Elementwise::source(const std::string& language, const std::vector<Dtype>& dtypes)
    const {
  std::vector<lang::Typed> types;
  for (auto dtype : dtypes) {
    types.push_back({dtype, false});
  }
  if (state_->rows) {
    return state_->rows->source(language, types);
  }
  auto& kernel = state_->specialise(types);
  switch (lang::language_named(language)) {
    case lang::Language::cuda: {
      std::vector<lang::Access> access(kernel.in.size(), lang::Access::contiguous);
      return together(lang::cuda_text(kernel.text(), access, 1));
    }
    case lang::Language::metal:
      return together(lang::metal_text(kernel.text()));
    default:
      return together(lang::cpp_text(kernel.text()));
  }
}

Elementwise kernel(std::string name, const std::vector<lang::Assignment>& outputs) {
  ElementwiseSpec spec{std::move(name)};
  for (auto& output : outputs) {
    spec.outputs.push_back(output.value);
  }
  spec.inputs = lang::inputs_of(spec.outputs);
  return Elementwise(std::move(spec));
}

} // namespace zmlx
