// zmlx/runtime/fused.cpp: the primitive behind apply().
#include "zmlx/runtime/fused.h"

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/backend/metal/metal.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "mlx/transforms_impl.h"
#include "zmlx/graph/capture.h"
#include "zmlx/ops/formula.h"
#include "zmlx/runtime/buffers.h"
#include "zmlx/runtime/copy.h"
#include "zmlx/runtime/cuda/apply.h"
#include "zmlx/runtime/cuda/mlx_stream.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

Types types_of(const Arrays& arrays) {
  Types out;
  for (auto& a : arrays) {
    out.push_back(type_of(a));
  }
  return out;
}

/// The formula that runs on MLX's Metal GPU, or nullptr.
const FormulaKernel* metal_formula(const Op& op, const Types& in, const Attrs& attrs) {
  auto* formula = mx::metal::is_available() ? formula_of(op) : nullptr;
  return formula && formula->fits(in, attrs) ? formula : nullptr;
}

using FoundKernel = std::shared_ptr<const cuda::Kernel>; // never nullptr, but perhaps empty

/// Each op's latest kernels, as calls come again with the same types.
class LatestKernels {
 public:
  FoundKernel get(const Op& op, const Types& in, const Types& out, const Attrs& attrs) {
    static const auto device = cuda::device();
    if (!device || !op.cuda) {
      static const auto none = std::make_shared<cuda::Kernel>();
      return none;
    }
    std::lock_guard lock(mutex_);
    auto& [entries, oldest] = by_op_[&op];
    for (auto& entry : entries) {
      if (entry.in == in && entry.attrs == attrs) {
        return entry.kernel;
      }
    }
    auto kernel = std::make_shared<cuda::Kernel>(op.cuda(in, out, attrs, *device));
    if (entries.size() < most) {
      entries.push_back({in, attrs, kernel});
    } else {
      entries[oldest++ % most] = {in, attrs, kernel};
    }
    return kernel;
  }

 private:
  static constexpr size_t most = 16;
  struct Entry {
    Types in;
    Attrs attrs;
    FoundKernel kernel;
  };
  struct Entries {
    std::vector<Entry> list;
    size_t oldest = 0;
  };
  std::mutex mutex_;
  std::unordered_map<const Op*, Entries> by_op_;
};

/// The kernel for MLX's GPU; an empty one where there is none, or no GPU that we know.
FoundKernel cuda_kernel(const Op& op, const Types& in, const Types& out, const Attrs& attrs) {
  static LatestKernels latest;
  return latest.get(op, in, out, attrs);
}

class Fused : public mx::Primitive {
 public:
  Fused(mx::Stream s, const Op& op, Attrs attrs)
      : Primitive(s), op_(op), attrs_(std::move(attrs)) {}

  void eval_cpu(const Arrays& inputs, Arrays& outputs) override;
  void eval_gpu(const Arrays& inputs, Arrays& outputs) override;

  Arrays jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums)
      override;
  Arrays vjp(
      const Arrays& primals,
      const Arrays& cotangents,
      const std::vector<int>& argnums,
      const Arrays& outputs) override;
  std::pair<Arrays, std::vector<int>> vmap(const Arrays& inputs, const std::vector<int>& axes)
      override;

  const char* name() const override {
    return op_.name.c_str();
  }
  bool is_equivalent(const mx::Primitive& other) const override {
    auto state = fused_state(other);
    return state && state->op == &op_ && *state->attrs == attrs_;
  }
  std::vector<mx::Shape> output_shapes(const Arrays& inputs) override {
    std::vector<mx::Shape> shapes;
    for (auto& type : op_.types(types_of(inputs), attrs_)) {
      shapes.push_back(mlx_shape(type.shape));
    }
    return shapes;
  }
  const Op& op() const {
    return op_;
  }
  const Attrs& attrs() const {
    return attrs_;
  }

 private:
  struct Differentiated;

  const Op& op_;
  Attrs attrs_;
};

// What one thread moves sooner than the team wakes up.
constexpr size_t alone_bytes = size_t{64} << 10;

/// What a task needs on the stream's thread; tensors point into arrays that MLX keeps alive until
/// the task has run.
struct Task {
  CpuKernel kernel;
  std::vector<Tensor> in;
  std::vector<Tensor> out;
  std::byte* scratch = nullptr;

  void operator()() const {
    Call call{in, out, scratch};
    auto body = [&](Member& member) { kernel.run(call, member); };
    size_t bytes = 0;
    for (auto* list : {&in, &out}) {
      for (auto& tensor : *list) {
        bytes += tensor.type.bytes();
      }
    }
    bytes <= alone_bytes ? Team::instance().run_alone(body) : Team::instance().run(body);
  }
};

void Fused::eval_cpu(const Arrays& inputs, Arrays& outputs) {
  auto& encoder = mx::cpu::get_command_encoder(stream());
  Task task;
  task.kernel = op_.cpu ? op_.cpu(types_of(inputs), types_of(outputs), attrs_) : CpuKernel{};
  if (!task.kernel.run) {
    fail(
        name(),
        "there is no CPU kernel for ",
        to_string(type_of(inputs[0])),
        "; use apply(), which falls back to MLX.");
  }
  for (auto& in : inputs) {
    encoder.set_input_array(in);
    task.in.push_back(packed_tensor(in, encoder));
  }
  std::vector<const mx::array*> overwrites(outputs.size(), nullptr);
  for (auto [output, input] : op_.in_place) {
    overwrites[static_cast<size_t>(output)] = &inputs[in_place_input(input, inputs.size())];
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    auto& out = outputs[i];
    auto* from = overwrites[i];
    if (from && from->is_donatable() && from->flags().row_contiguous) {
      out.copy_shared_buffer(*from);
    } else {
      allocate(out);
      if (from) {
        auto& packed = task.in[static_cast<size_t>(from - inputs.data())];
        encoder.dispatch([packed, to = out.data<char>()] {
          std::copy_n(packed.as<char>(), packed.type.bytes(), to);
        });
      }
    }
    encoder.set_output_array(out);
    task.out.push_back(tensor_of(out));
  }
  if (task.kernel.scratch) {
    mx::array scratch({static_cast<int>(task.kernel.scratch + 64)}, mx::uint8, nullptr, {});
    scratch.set_data(mx::allocator::malloc(scratch.nbytes()));
    encoder.add_temporary(scratch);
    auto address = reinterpret_cast<uintptr_t>(scratch.data<char>());
    task.scratch = reinterpret_cast<std::byte*>((address + 63) & ~uintptr_t{63});
  }
  encoder.dispatch(std::move(task));
}

void Fused::eval_gpu(const Arrays& inputs, Arrays& outputs) {
  if (auto* formula = metal_formula(op_, types_of(inputs), attrs_)) {
    formula->run_metal(inputs, outputs, attrs_, stream());
    return;
  }
  auto kernel = cuda_kernel(op_, types_of(inputs), types_of(outputs), attrs_);
  if (!*kernel) {
    fail(
        name(),
        "there is no GPU kernel for ",
        to_string(type_of(inputs[0])),
        "; use apply(), which falls back to MLX.");
  }
  cuda::apply(op_, *kernel, inputs, outputs, stream());
}

/// Whether there are derivatives with respect to x: indices and masks have none.
bool is_smooth(const mx::array& x) {
  return mx::issubdtype(x.dtype(), mx::floating);
}

/// The reference as a function of the arguments `argnums` alone, and those arguments.
struct Fused::Differentiated {
  Differentiated(const Fused& fused, const Arrays& primals, const std::vector<int>& argnums) {
    for (int i : argnums) {
      chosen.push_back(primals[static_cast<size_t>(i)]);
    }
    reference = [&fused, &primals, &argnums](const Arrays& arguments) {
      Arrays all = primals;
      for (size_t i = 0; i < argnums.size(); ++i) {
        all[static_cast<size_t>(argnums[i])] = arguments[i];
      }
      return fused.op_.reference(all, fused.attrs_);
    };
  }

  Arrays chosen;
  std::function<Arrays(const Arrays&)> reference;
};

Arrays Fused::jvp(const Arrays& primals, const Arrays& tangents, const std::vector<int>& argnums) {
  std::vector<int> smooth;
  Arrays smooth_tangents;
  for (size_t i = 0; i < argnums.size(); ++i) {
    if (is_smooth(primals[static_cast<size_t>(argnums[i])])) {
      smooth.push_back(argnums[i]);
      smooth_tangents.push_back(tangents[i]);
    }
  }
  Differentiated of(*this, primals, smooth);
  return mx::jvp(of.reference, of.chosen, smooth_tangents).second;
}

Arrays Fused::vjp(
    const Arrays& primals,
    const Arrays& cotangents,
    const std::vector<int>& argnums,
    const Arrays& outputs) {
  std::vector<int> smooth;
  std::copy_if(argnums.begin(), argnums.end(), std::back_inserter(smooth), [&](int i) {
    return is_smooth(primals[static_cast<size_t>(i)]);
  });
  Arrays of_smooth;
  if (op_.gradient) {
    auto apply_here = [this](std::string_view op, const Arrays& inputs, const Attrs& attrs) {
      return apply(op_named(op), inputs, attrs, stream());
    };
    auto all = op_.gradient({primals, outputs, cotangents, attrs_, apply_here});
    for (int i : smooth) {
      of_smooth.push_back(all[static_cast<size_t>(i)]);
    }
  } else if (!smooth.empty()) {
    Differentiated of(*this, primals, smooth);
    of_smooth = mx::vjp(of.reference, of.chosen, cotangents).second;
  }
  Arrays all;
  auto next = of_smooth.begin();
  for (int i : argnums) {
    const auto& x = primals[static_cast<size_t>(i)];
    all.push_back(is_smooth(x) ? *next++ : mx::zeros_like(x));
  }
  return all;
}

std::pair<Arrays, std::vector<int>> Fused::vmap(
    const Arrays& inputs,
    const std::vector<int>& axes) {
  auto reference = [&](const Arrays& in) { return op_.reference(in, attrs_); };
  auto [in, out] = mx::detail::vmap_trace(reference, inputs, axes);
  std::vector<int> out_axes(out.size(), 0);
  return {mx::detail::vmap_replace(inputs, in, out, axes, out_axes), out_axes};
}

Arrays node_of(
    const Op& op,
    const Types& types,
    const Arrays& inputs,
    const Attrs& attrs,
    mx::StreamOrDevice s) {
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (auto& type : types) {
    shapes.push_back(mlx_shape(type.shape));
    dtypes.push_back(mlx_dtype(type.dtype));
  }
  return mx::array::make_arrays(
      std::move(shapes), dtypes, std::make_shared<Fused>(mx::to_stream(s), op, attrs), inputs);
}

} // namespace

Arrays node(const Op& op, const Arrays& inputs, const Attrs& attrs, mx::StreamOrDevice s) {
  return node_of(op, op.types(types_of(inputs), attrs), inputs, attrs, s);
}

Arrays apply(const Op& op, const Arrays& inputs, const Attrs& attrs, mx::StreamOrDevice s) {
  auto in = types_of(inputs);
  auto out = op.types(in, attrs);
  if (mx::to_stream(s).device == mx::Device::cpu) {
    bool has_kernel = op.cpu && op.cpu(in, out, attrs).run;
    return has_kernel ? node_of(op, out, inputs, attrs, s) : op.reference(inputs, attrs);
  }
  if (metal_formula(op, in, attrs)) {
    Arrays packed;
    for (auto& a : inputs) {
      packed.push_back(mx::contiguous(a, false, s));
    }
    return node_of(op, out, packed, attrs, s);
  }
  bool has_kernel = static_cast<bool>(*cuda_kernel(op, in, out, attrs));
  return has_kernel ? node_of(op, out, inputs, attrs, s) : op.reference(inputs, attrs);
}

const Op& op_named(std::string_view name) {
  if (auto* op = find_op(name)) {
    return *op;
  }
  fail("zmlx", "there is no op named '", name, "'.");
}

std::optional<FusedState> fused_state(const mx::Primitive& primitive) {
  if (auto* fused = dynamic_cast<const Fused*>(&primitive)) {
    return FusedState{&fused->op(), &fused->attrs()};
  }
  return {};
}

} // namespace zmlx
