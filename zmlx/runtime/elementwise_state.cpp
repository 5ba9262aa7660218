// zmlx/runtime/elementwise_state.cpp: kernels for dtypes, and kernels of gradients.
#include "zmlx/runtime/elementwise_state.h"

#include "zmlx/graph/capture.h"
#include "zmlx/kernel/lang/derive.h"

namespace zmlx {

void Specialised::compile() {
  std::call_once(once, [this] {
    auto made = lang::cpp_text(text());
    library = jit::compile(made.prelude + made.kernel);
    run = reinterpret_cast<Run>(library->symbol("zmlx_run"));
  });
}

Lowered lowered(
    const ElementwiseSpec& spec,
    const std::vector<lang::Typed>& types,
    const std::vector<bool>& rows) {
  auto as = types;
  if (spec.compute) {
    for (auto& type : as) {
      type.dtype = *spec.compute;
    }
  }
  Lowered made{lang::lower(spec.outputs, spec.inputs, as, rows), {}, {}};
  // Without the conversion: what the results are stored as.
  auto stored = lang::lower(spec.outputs, spec.inputs, types, rows);
  for (size_t i = 0; i < spec.outputs.size(); ++i) {
    auto step = static_cast<size_t>(made.program.results[i]);
    auto dtype = made.program.steps[step].type.dtype;
    auto plain = stored.steps[static_cast<size_t>(stored.results[i])].type.dtype;
    if (!spec.compute || is_floating(plain)) {
      dtype = plain;
    }
    if (i < spec.like.size() && spec.like[i] >= 0) {
      dtype = types[static_cast<size_t>(spec.like[i])].dtype;
    }
    made.out.push_back(dtype);
  }
  for (auto& type : types) {
    made.in.push_back(type.dtype);
  }
  return made;
}

std::vector<lang::Typed> typed(
    const std::vector<mx::array>& inputs,
    const std::vector<bool>& weak) {
  std::vector<lang::Typed> out;
  for (size_t i = 0; i < inputs.size(); ++i) {
    out.push_back({type_of(inputs[i]).dtype, i < weak.size() && weak[i]});
  }
  return out;
}

ElementwiseSpec gradient_spec(
    const ElementwiseSpec& spec,
    const std::vector<int>& argnums,
    const std::vector<bool>& rows) {
  ElementwiseSpec made{spec.name + "_gradient", spec.inputs, {}, spec.compute};
  std::vector<std::string> wanted;
  std::vector<std::string> of_rows;
  for (int i : argnums) {
    wanted.push_back(spec.inputs[static_cast<size_t>(i)]);
    made.like.push_back(i);
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i]) {
      of_rows.push_back(spec.inputs[i]);
    }
  }
  if (spec.gradients.empty()) {
    std::vector<lang::Expr> cotangents;
    for (size_t i = 0; i < spec.outputs.size(); ++i) {
      // Gradients nest, so the kernel's own name is part of it.
      made.inputs.push_back(spec.name + "_cotangent_" + std::to_string(i));
      cotangents.push_back(lang::input(made.inputs.back()));
      if (!rows.empty() && lang::is_row(spec.outputs[i], of_rows)) {
        of_rows.push_back(made.inputs.back());
      }
    }
    made.outputs = lang::gradients(spec.outputs, cotangents, wanted, of_rows);
  } else {
    made.inputs.insert(made.inputs.end(), {"g", "y"});
    for (int i : argnums) {
      made.outputs.push_back(spec.gradients[static_cast<size_t>(i)]);
    }
  }
  return made;
}

Elementwise::State::State(ElementwiseSpec s)
    : spec(std::move(s)),
      rows(lang::has_rows(spec.outputs) ? std::optional(Rowwise(spec)) : std::nullopt) {}

Specialised& Elementwise::State::specialise(const std::vector<lang::Typed>& types) {
  std::vector<std::pair<Dtype, bool>> key;
  for (auto& type : types) {
    key.emplace_back(type.dtype, type.weak);
  }
  std::lock_guard lock(mutex_);
  auto& made = specialised_[key];
  if (!made) {
    made = std::make_unique<Specialised>();
    static_cast<Lowered&>(*made) = lowered(spec, types);
  }
  return *made;
}

Elementwise Elementwise::State::gradient(const std::vector<int>& argnums) {
  std::lock_guard lock(mutex_);
  auto it = gradients_.find(argnums);
  if (it == gradients_.end()) {
    it = gradients_.emplace(argnums, Elementwise(gradient_spec(spec, argnums))).first;
  }
  return it->second;
}

} // namespace zmlx
