// zmlx/runtime/elementwise_state.cpp: kernels for dtypes, and kernels of gradients.
#include "zmlx/runtime/elementwise_state.h"

#include "zmlx/kernel/lang/derive.h"

namespace zmlx {

void Specialised::compile() {
  std::call_once(once, [this] {
    auto made = lang::cpp_text(text());
    library = jit::compile(made.prelude + made.kernel);
    run = reinterpret_cast<Run>(library->symbol("zmlx_run"));
  });
}

Specialised& Elementwise::State::specialise(const std::vector<lang::Typed>& types) {
  std::vector<std::pair<Dtype, bool>> key;
  for (auto& type : types) {
    key.emplace_back(type.dtype, type.weak);
  }
  std::lock_guard lock(mutex_);
  auto& made = specialised_[key];
  if (!made) {
    auto as = types;
    if (spec.compute) {
      for (auto& type : as) {
        type.dtype = *spec.compute;
      }
    }
    auto kernel = std::make_unique<Specialised>();
    kernel->program = lang::lower(spec.outputs, spec.inputs, as);
    // Without the conversion: what the results are stored as.
    auto stored = lang::lower(spec.outputs, spec.inputs, types);
    for (size_t i = 0; i < spec.outputs.size(); ++i) {
      auto step = static_cast<size_t>(kernel->program.results[i]);
      auto dtype = kernel->program.steps[step].type.dtype;
      auto plain = stored.steps[static_cast<size_t>(stored.results[i])].type.dtype;
      if (spec.compute && is_floating(plain)) {
        dtype = plain;
      } else if (!spec.compute) {
        dtype = plain;
      }
      if (i < spec.like.size() && spec.like[i] >= 0) {
        dtype = types[static_cast<size_t>(spec.like[i])].dtype;
      }
      kernel->out.push_back(dtype);
    }
    for (auto& type : types) {
      kernel->in.push_back(type.dtype);
    }
    made = std::move(kernel);
  }
  return *made;
}

Elementwise Elementwise::State::gradient(const std::vector<int>& argnums) {
  std::lock_guard lock(mutex_);
  auto it = gradients_.find(argnums);
  if (it == gradients_.end()) {
    ElementwiseSpec made{spec.name + "_gradient", spec.inputs, {}, spec.compute};
    std::vector<std::string> wanted;
    for (int i : argnums) {
      wanted.push_back(spec.inputs[static_cast<size_t>(i)]);
      made.like.push_back(i);
    }
    if (spec.gradients.empty()) {
      std::vector<lang::Expr> cotangents;
      for (size_t i = 0; i < spec.outputs.size(); ++i) {
        // Gradients nest, so the kernel's own name is part of it.
        made.inputs.push_back(spec.name + "_cotangent_" + std::to_string(i));
        cotangents.push_back(lang::input(made.inputs.back()));
      }
      made.outputs = lang::gradients(spec.outputs, cotangents, wanted);
    } else {
      made.inputs.insert(made.inputs.end(), {"g", "y"});
      for (int i : argnums) {
        made.outputs.push_back(spec.gradients[static_cast<size_t>(i)]);
      }
    }
    it = gradients_.emplace(argnums, Elementwise(std::move(made))).first;
  }
  return it->second;
}

} // namespace zmlx
