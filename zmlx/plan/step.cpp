// zmlx/plan/step.cpp: one or two plans behind one call.
#include "zmlx/plan/step.h"

#include <numeric>

namespace zmlx {

std::shared_ptr<Step>
Step::make(const Graph& graph, bool lazy_logits, std::vector<std::string>& reasons) {
  std::vector<int> wanted(graph.outputs.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  if (lazy_logits) {
    wanted.erase(wanted.begin());
  }
  auto step = std::make_shared<Step>();
  step->split_ = split(graph, wanted);
  auto executable = [&](const Graph& part) -> std::shared_ptr<Executable> {
    auto [plan, why] = make_plan(part);
    reasons.insert(reasons.end(), why.begin(), why.end());
    return plan ? std::make_shared<Executable>(plan) : nullptr;
  };
  step->first_ = executable(step->split_.first);
  if (lazy_logits) {
    step->second_ = executable(step->split_.second);
  }
  return reasons.empty() ? step : nullptr;
}

Arrays Step::operator()(
    const Arrays& inputs,
    const std::vector<mx::Shape>& buffer_shapes,
    mx::StreamOrDevice s) const {
  // Plan states are in the order of the plan's outputs, and those in the order of the buffers.
  Arrays first = execute(first_, inputs, buffer_shapes, s);
  if (!second_) {
    return first;
  }
  Arrays in;
  for (auto source : split_.sources) {
    in.push_back((source.is_input ? inputs : first)[static_cast<size_t>(source.index)]);
  }
  Arrays out = execute(second_, in, {}, s);
  out.insert(
      out.end(),
      first.begin(),
      first.begin() + static_cast<ptrdiff_t>(split_.first_outputs.size()));
  return out;
}

std::vector<const Plan*> Step::plans() const {
  std::vector<const Plan*> list{&first_->plan()};
  if (second_) {
    list.push_back(&second_->plan());
  }
  return list;
}

} // namespace zmlx
