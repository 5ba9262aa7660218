// zmlx/plan/step.cpp: one or two plans behind one call.
#include "zmlx/plan/step.h"

#include <numeric>

namespace zmlx {

SplitGraph split_step(const Graph& graph, bool lazy_logits) {
  std::vector<int> wanted(graph.outputs.size());
  std::iota(wanted.begin(), wanted.end(), 0);
  if (lazy_logits) {
    wanted.erase(wanted.begin());
  }
  return split(graph, wanted);
}

std::vector<std::shared_ptr<const Plan>> plan_parts(
    const SplitGraph& parts,
    std::vector<std::string>& reasons,
    const std::optional<cuda::Device>& device) {
  std::vector<std::shared_ptr<const Plan>> plans;
  for (auto* part : {&parts.first, &parts.second}) {
    if (part->outputs.empty()) {
      continue;
    }
    auto [plan, why] = make_plan(*part, device);
    reasons.insert(reasons.end(), why.begin(), why.end());
    if (plan) {
      plans.push_back(plan);
    }
  }
  return plans;
}

std::shared_ptr<Step> Step::make(
    const Graph& graph,
    bool lazy_logits,
    std::vector<std::string>& reasons,
    const std::optional<cuda::Device>& device) {
  auto step = std::make_shared<Step>();
  step->split_ = split_step(graph, lazy_logits);
  auto plans = plan_parts(step->split_, reasons, device);
  if (!reasons.empty()) {
    return nullptr;
  }
  step->first_ = std::make_shared<Executable>(plans[0]);
  if (plans.size() > 1) {
    step->second_ = std::make_shared<Executable>(plans[1]);
  }
  return step;
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
