// zmlx/runtime/metal_kernel.cpp: the primitive behind MetalKernel: threadgroups run over the thread
// team, or as blocks of a CUDA launch.
#include "zmlx/runtime/metal_kernel.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/copy.h"
#include "zmlx/runtime/cuda/apply.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/metal_task.h"

namespace zmlx {

using Arrays = std::vector<mx::array>;

struct MetalKernel::State {
  msl::Source source;
  bool ensure_row_contiguous;
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<MetalProgram>> programs;

  std::shared_ptr<MetalProgram> specialise(const Arrays& inputs, const MetalCall& call);
  void compile(MetalProgram& program);
  [[noreturn]] void explain(const std::runtime_error& error) const;
};

namespace {

constexpr int most_threads = 1024; // of a threadgroup

/// Outputs that begin with a value do so as arrays that stand behind the inputs.
class Bodied : public mx::Primitive {
 public:
  Bodied(
      mx::Stream s,
      std::shared_ptr<MetalKernel::State> state,
      std::shared_ptr<const MetalProgram> program,
      MetalCall call)
      : Primitive(s),
        state_(std::move(state)),
        program_(std::move(program)),
        call_(std::move(call)) {}

  const char* name() const override {
    return state_->source.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto* same = dynamic_cast<const Bodied*>(&other);
    return same && same->program_ == program_ && same->call_.grid == call_.grid &&
        same->call_.threadgroup == call_.threadgroup &&
        same->call_.output_shapes == call_.output_shapes &&
        same->call_.init_value == call_.init_value;
  }

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
    MetalTask task{program_, call_, {}, {}, {}, {}, {}, {}};
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (size_t i = 0; i < inputs.size(); ++i) {
      auto& x = inputs[i];
      encoder.set_input_array(x);
      if (i < state_->source.inputs.size()) {
        task.in.push_back(x.data<char>());
        task.shapes.emplace_back(x.shape().begin(), x.shape().end());
        task.strides.emplace_back(x.strides().begin(), x.strides().end());
      }
    }
    for (size_t i = 0; i < outputs.size(); ++i) {
      auto& out = outputs[i];
      if (call_.init_value) {
        auto& first = inputs[task.in.size() + i];
        if (first.is_donatable() && first.flags().row_contiguous) {
          out.copy_shared_buffer(first);
        } else {
          allocate(out);
          task.copies.emplace_back(i, first.data<char>());
        }
      } else {
        allocate(out);
      }
      encoder.set_output_array(out);
      task.out.push_back(out.data<char>());
      task.bytes.push_back(out.nbytes());
    }
    encoder.dispatch(std::move(task));
  }

  void eval_gpu(const Arrays& inputs, Arrays& outputs) override {
    Op op;
    op.name = name();
    for (size_t i = 0; call_.init_value && i < outputs.size(); ++i) {
      op.in_place.emplace_back(
          static_cast<int>(i), static_cast<int>(state_->source.inputs.size() + i));
    }
    cuda::Kernel kernel;
    kernel.strided = true;
    if (groups_of(call_) > 0) {
      kernel.launches.push_back(launch(inputs));
    }
    try {
      cuda::apply(op, kernel, inputs, outputs, stream());
    } catch (const std::runtime_error& error) {
      state_->explain(error);
    }
  }

  Arrays vjp(const Arrays&, const Arrays&, const std::vector<int>&, const Arrays&) override {
    no_transform("gradient; give it one with mx.custom_function");
  }
  Arrays jvp(const Arrays&, const Arrays&, const std::vector<int>&) override {
    no_transform("derivative; give it one with mx.custom_function");
  }
  std::pair<Arrays, std::vector<int>> vmap(const Arrays&, const std::vector<int>&) override {
    no_transform("rule for mx.vmap; give it one with mx.custom_function");
  }

 private:
  [[noreturn]] void no_transform(const char* what) const {
    fail(name(), "a kernel that is written as a Metal function's body has no ", what, ".");
  }

  cuda::Launch launch(const Arrays& inputs) const {
    cuda::Launch out;
    out.kernel = "metal::zmlx_kernel";
    out.generated = program_->cuda;
    out.grid[0] = static_cast<uint32_t>(groups_of(call_));
    out.block[0] = 1;
    for (auto* dims : {&call_.grid, &call_.threadgroup}) {
      for (int n : *dims) {
        out.arguments.push_back(cuda::extent(n));
      }
    }
    for (int n : call_.threadgroup) {
      out.block[0] *= static_cast<uint32_t>(n);
    }
    for (size_t i = 0; i < state_->source.inputs.size(); ++i) {
      auto& view = program_->texts.views[i];
      out.arguments.push_back(cuda::in(static_cast<int>(i)));
      for (size_t a = 0; a < inputs[i].ndim(); ++a) {
        if (view.shape) {
          out.arguments.push_back(cuda::extent(inputs[i].shape(static_cast<int>(a))));
        }
        if (view.strides) {
          out.arguments.push_back(cuda::extent(inputs[i].strides()[a]));
        }
      }
    }
    for (size_t i = 0; i < state_->source.outputs.size(); ++i) {
      out.arguments.push_back(cuda::out(static_cast<int>(i)));
    }
    return out;
  }

  std::shared_ptr<MetalKernel::State> state_;
  std::shared_ptr<const MetalProgram> program_;
  MetalCall call_;
};

std::string to_string(const std::array<int, 3>& v) {
  return "(" + std::to_string(v[0]) + ", " + std::to_string(v[1]) + ", " + std::to_string(v[2]) +
      ")";
}

void check_dtype(const std::string& name, const std::string& what, mx::Dtype dtype) {
  if (dtype == mx::float64 || dtype == mx::complex64) {
    fail(
        name.c_str(),
        what,
        " must be real with at most 32 bits or an integer but is ",
        dtype == mx::float64 ? "float64" : "complex64",
        ".");
  }
}

/// The call with its threadgroup cut to the grid, as MLX does.
MetalCall checked(const msl::Source& source, const Arrays& inputs, MetalCall call) {
  auto* name = source.name.c_str();
  auto count = [&](const char* what, size_t want, size_t got) {
    if (want != got) {
      fail(
          name,
          what,
          " must have ",
          want,
          want == 1 ? " element" : " elements",
          " but got ",
          got,
          ".");
    }
  };
  count("inputs", source.inputs.size(), inputs.size());
  count("output_shapes", source.outputs.size(), call.output_shapes.size());
  count("output_dtypes", source.outputs.size(), call.output_dtypes.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    check_dtype(source.name, source.inputs[i], inputs[i].dtype());
  }
  for (size_t i = 0; i < call.output_dtypes.size(); ++i) {
    check_dtype(source.name, source.outputs[i], call.output_dtypes[i]);
  }
  int64_t threads = 1;
  for (size_t a = 0; a < 3; ++a) {
    if (call.grid[a] < 0) {
      fail(name, "grid must not be negative but got ", to_string(call.grid), ".");
    }
    if (call.threadgroup[a] < 1) {
      fail(name, "threadgroup must be positive but got ", to_string(call.threadgroup), ".");
    }
    threads *= call.threadgroup[a];
  }
  if (threads > most_threads) {
    fail(
        name,
        "threadgroup may have at most 1024 threads but got ",
        to_string(call.threadgroup),
        ".");
  }
  for (size_t a = 0; a < 3; ++a) {
    call.threadgroup[a] = std::clamp(call.grid[a], 1, call.threadgroup[a]);
  }
  if (groups_of(call) > INT32_MAX) {
    fail(name, "grid has more than 2^31 threadgroups: ", to_string(call.grid), ".");
  }
  return call;
}

Arrays on_metal(
    const msl::Source& source,
    bool ensure_row_contiguous,
    const Arrays& inputs,
    const MetalCall& call,
    mx::StreamOrDevice s) {
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> arguments;
  for (auto& [name, value] : call.arguments) {
    std::visit([&, &name = name](auto v) { arguments.emplace_back(name, v); }, value);
  }
  auto kernel = mx::fast::metal_kernel(
      source.name,
      source.inputs,
      source.outputs,
      source.body,
      source.header,
      ensure_row_contiguous,
      source.atomic_outputs);
  auto tuple = [](auto& v) { return std::make_tuple(v[0], v[1], v[2]); };
  return kernel(
      inputs,
      call.output_shapes,
      call.output_dtypes,
      tuple(call.grid),
      tuple(call.threadgroup),
      arguments,
      call.init_value,
      false,
      s);
}

} // namespace

std::shared_ptr<MetalProgram> MetalKernel::State::specialise(
    const Arrays& inputs,
    const MetalCall& call) {
  msl::Types types;
  std::string key;
  for (auto& x : inputs) {
    types.inputs.push_back({dtype_of(x.dtype()), static_cast<int>(x.ndim())});
    key += std::string(name_of(types.inputs.back().dtype)) + ' ' + std::to_string(x.ndim()) + ',';
  }
  for (auto dtype : call.output_dtypes) {
    types.outputs.push_back(dtype_of(dtype));
    key += std::string(name_of(types.outputs.back())) + ',';
  }
  for (auto& [word, value] : call.arguments) {
    key += word;
    if (auto* dtype = std::get_if<mx::Dtype>(&value)) {
      check_dtype(source.name, word, *dtype);
      types.arguments.emplace_back(word, dtype_of(*dtype));
      key += std::string(" type ") + name_of(dtype_of(*dtype));
    } else if (auto* truth = std::get_if<bool>(&value)) {
      types.arguments.emplace_back(word, *truth);
      key += *truth ? " true" : " false";
    } else {
      types.arguments.emplace_back(word, int64_t{std::get<int>(value)});
      key += ' ' + std::to_string(std::get<int>(value));
    }
    key += ',';
  }
  std::lock_guard lock(mutex);
  auto& made = programs[key];
  if (!made) {
    auto fresh = std::make_shared<MetalProgram>();
    fresh->texts = msl::program(source, types);
    fresh->cuda = cuda::shared_text(fresh->texts.cuda);
    made = std::move(fresh);
  }
  return made;
}

void MetalKernel::State::compile(MetalProgram& program) {
  if (!jit::available()) {
    throw std::runtime_error(
        "[" + source.name +
        "] a Metal function's body needs a C++ compiler to run on the CPU: set ZMLX_CXX, or install "
        "c++, g++ or clang++.");
  }
  std::lock_guard lock(mutex);
  if (program.run) {
    return;
  }
  try {
    program.library = jit::compile(program.texts.cpp);
  } catch (const std::runtime_error& error) {
    explain(error);
  }
  program.run = reinterpret_cast<msl::Run>(program.library->symbol("zmlx_run"));
}

void MetalKernel::State::explain(const std::runtime_error& error) const {
  auto text = msl::explained(source, error.what());
  if (text.empty()) {
    throw std::runtime_error(error.what());
  }
  fail(source.name.c_str(), text);
}

MetalKernel::MetalKernel(msl::Source source, bool ensure_row_contiguous)
    : state_(std::make_shared<State>()) {
  if (source.outputs.empty()) {
    fail(source.name.c_str(), "must have at least one output.");
  }
  state_->source = std::move(source);
  state_->ensure_row_contiguous = ensure_row_contiguous;
}

Arrays MetalKernel::operator()(const Arrays& given, const MetalCall& asked, mx::StreamOrDevice s)
    const {
  auto& source = state_->source;
  auto call = checked(source, given, asked);
  auto stream = mx::to_stream(s);
  bool on_cpu = stream.device == mx::Device::cpu;
  if (!on_cpu && mx::metal::is_available()) {
    return on_metal(source, state_->ensure_row_contiguous, given, asked, s);
  }
  auto program = state_->specialise(given, call);
  if (on_cpu) {
    state_->compile(*program);
  } else if (!cuda::device()) {
    throw std::runtime_error(
        "[" + source.name + "] cannot run on this GPU: " + cuda::why_not() + ".");
  }
  Arrays inputs;
  for (auto& x : given) {
    inputs.push_back(state_->ensure_row_contiguous ? mx::contiguous(x, false, stream) : x);
  }
  for (size_t i = 0; call.init_value && i < source.outputs.size(); ++i) {
    inputs.push_back(
        mx::full(call.output_shapes[i], *call.init_value, call.output_dtypes[i], stream));
  }
  auto primitive = std::make_shared<Bodied>(stream, state_, program, call);
  return mx::array::make_arrays(call.output_shapes, call.output_dtypes, primitive, inputs);
}

std::string MetalKernel::source(
    const std::string& language,
    const Arrays& inputs,
    const MetalCall& call) const {
  auto program = state_->specialise(inputs, checked(state_->source, inputs, call));
  auto& texts = program->texts;
  if (language == "metal") {
    return texts.metal;
  }
  if (language == "cpp") {
    return texts.cpp;
  }
  if (language == "cuda") {
    return texts.cuda;
  }
  fail(
      state_->source.name.c_str(),
      "language must be \"cpp\", \"cuda\" or \"metal\" but got \"",
      language,
      "\".");
}

} // namespace zmlx
