// zmlx/ops/activations.h: the activations that ops take by name.
#pragma once

#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/ops/op.h"

namespace zmlx {

struct ActivationRow {
  const char* name;
  cpu::Activation kernel;
  const char* formula;
  mx::array (*reference)(const mx::array& x, float parameter); // x in float32
  std::optional<Parameter> parameter = {};

  /// Its value among the attributes, or the default; 0 where there is none.
  float parameter_of(const Attrs& attrs = {}) const;
  /// The activation of x in the kernel language, where its parameter is called `parameter`.
  std::string call(const std::string& x) const {
    return std::string(name) + "(" + x + (parameter ? ", parameter)" : ")");
  }
};

const std::vector<ActivationRow>& activations();
/// The row of that name; throws std::invalid_argument("[op] activation must be ...").
const ActivationRow& activation_named(const char* op, const std::string& name);

} // namespace zmlx
