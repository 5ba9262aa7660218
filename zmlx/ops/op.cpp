// zmlx/ops/op.cpp: the registry of ops.
#include "zmlx/ops/op.h"

#include <algorithm>
#include <deque>

namespace zmlx {
namespace {

std::deque<Op>& storage() {
  static std::deque<Op> ops;
  return ops;
}

} // namespace

const std::vector<const Op*>& all_ops() {
  static const std::vector<const Op*> sorted = [] {
    std::vector<const Op*> list;
    for (auto& op : storage()) {
      list.push_back(&op);
    }
    std::sort(list.begin(), list.end(), [](auto* a, auto* b) { return a->name < b->name; });
    return list;
  }();
  return sorted;
}

const Op* find_op(std::string_view name) {
  auto& ops = all_ops();
  auto it = std::lower_bound(
      ops.begin(), ops.end(), name, [](auto* op, auto key) { return op->name < key; });
  return it != ops.end() && (*it)->name == name ? *it : nullptr;
}

OpBuilder::OpBuilder(std::string name) : op_(storage().emplace_back()) {
  op_.name = std::move(name);
}

OpBuilder& OpBuilder::args(std::vector<std::string> names) {
  op_.args = std::move(names);
  return *this;
}

OpBuilder& OpBuilder::doc(std::string text) {
  op_.doc = std::move(text);
  return *this;
}

OpBuilder& OpBuilder::types(decltype(Op::types) fn) {
  op_.types = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::reference(decltype(Op::reference) fn) {
  op_.reference = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::gradient(decltype(Op::gradient) fn) {
  op_.gradient = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::cpu(decltype(Op::cpu) fn) {
  op_.cpu = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::cuda(decltype(Op::cuda) fn) {
  op_.cuda = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::traffic(decltype(Op::traffic) fn) {
  op_.traffic = std::move(fn);
  return *this;
}

OpBuilder& OpBuilder::in_place(int output, int input) {
  op_.in_place.emplace_back(output, input);
  return *this;
}

OpBuilder& OpBuilder::cases(std::vector<Case> list) {
  op_.cases = std::move(list);
  return *this;
}

OpBuilder& OpBuilder::rounds_activations() {
  op_.rounds_activations = true;
  return *this;
}

OpBuilder& OpBuilder::function(std::vector<Parameter> parameters) {
  op_.is_function = true;
  op_.parameters = std::move(parameters);
  return *this;
}

} // namespace zmlx
