// zmlx/graph/compiled.cpp: reads the wiring of a Compiled node from its library's name, its only
// public trace.
#include "zmlx/graph/compiled.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "mlx/ops.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

using Unary = mx::array (*)(const mx::array&, mx::StreamOrDevice);
using Binary = mx::array (*)(const mx::array&, const mx::array&, mx::StreamOrDevice);

const std::map<std::string_view, Unary> unary = {
    {"Abs", mx::abs},           {"Ceil", mx::ceil},
    {"Cos", mx::cos},           {"Cosh", mx::cosh},
    {"Erf", mx::erf},           {"ErfInv", mx::erfinv},
    {"Exp", mx::exp},           {"Expm1", mx::expm1},
    {"Floor", mx::floor},       {"Log", mx::log},
    {"Log10", mx::log10},       {"Log1p", mx::log1p},
    {"Log2", mx::log2},         {"LogicalNot", mx::logical_not},
    {"Negative", mx::negative}, {"Rsqrt", mx::rsqrt},
    {"Sigmoid", mx::sigmoid},   {"Sign", mx::sign},
    {"Sin", mx::sin},           {"Sinh", mx::sinh},
    {"Sqrt", mx::sqrt},         {"Square", mx::square},
    {"Tan", mx::tan},           {"Tanh", mx::tanh}};

const std::map<std::string_view, Binary> binary = {
    {"Add", mx::add},
    {"Divide", mx::divide},
    {"Equal", mx::equal},
    {"Greater", mx::greater},
    {"GreaterEqual", mx::greater_equal},
    {"Less", mx::less},
    {"LessEqual", mx::less_equal},
    {"LogAddExp", mx::logaddexp},
    {"LogicalAnd", mx::logical_and},
    {"LogicalOr", mx::logical_or},
    {"Maximum", mx::maximum},
    {"Minimum", mx::minimum},
    {"Multiply", mx::multiply},
    {"NotEqual", mx::not_equal},
    {"Power", mx::power},
    {"Remainder", mx::remainder},
    {"Subtract", mx::subtract}};

const std::map<std::string_view, Dtype> dtypes = {
    {"b1", Dtype::boolean},
    {"u1", Dtype::u8},
    {"u2", Dtype::u16},
    {"u4", Dtype::u32},
    {"u8", Dtype::u64},
    {"i1", Dtype::i8},
    {"i2", Dtype::i16},
    {"i4", Dtype::i32},
    {"i8", Dtype::i64},
    {"f2", Dtype::f16},
    {"V2", Dtype::bf16},
    {"f4", Dtype::f32}};

/// Inputs of an operation; 0 for one that is unknown, -1 for any number.
int arity(std::string_view kind) {
  if (unary.contains(kind) || kind == "AsType") {
    return 1;
  }
  return binary.contains(kind) ? 2 : kind == "Select" ? 3 : kind == "Broadcast" ? -1 : 0;
}

/// The longest operation name in front of `text`: what follows are names of values, single
/// capitals.
std::string_view leading_kind(std::string_view text) {
  size_t longest = 0;
  for (size_t n = 1; n <= std::min<size_t>(text.size(), 16); ++n) {
    longest = arity(text.substr(0, n)) ? n : longest;
  }
  return text.substr(0, longest);
}

} // namespace

// The name is, for each step, "<value><dtype>I" or "O" for the output, then the operation and its
// inputs: "CV2ISigmoidA". Values are single letters, the node's inputs first; MLX puts at most 24
// of them into one node.
std::optional<std::vector<Step>> steps_of(std::string_view library, int inputs) {
  auto text = library.substr(0, library.find('_'));
  std::vector<Step> steps;
  std::map<char, int> values;
  for (int i = 0; i < inputs; ++i) {
    values[static_cast<char>('A' + i)] = i;
  }
  bool complete = false;
  while (!text.empty()) {
    if (text.size() < 5 || !std::isupper(static_cast<unsigned char>(text[0])) ||
        !dtypes.contains(text.substr(1, 2)) || (text[3] != 'I' && text[3] != 'O') || complete) {
      return {};
    }
    char name = text[0];
    complete = text[3] == 'O';
    Step step;
    step.dtype = dtypes.at(text.substr(1, 2));
    text.remove_prefix(4);
    step.kind = leading_kind(text);
    text.remove_prefix(step.kind.size());
    // Capitals up to the next dtype; the last of them names the next step, and bfloat16's V is one
    // too.
    auto digit = std::min(text.size(), text.find_first_of("0123456789"));
    auto count = digit == text.size() ? digit : digit < 2 ? 0 : digit - 2;
    int expected = arity(step.kind);
    if (expected == 0 || (expected > 0 && count != static_cast<size_t>(expected)) || count == 0) {
      return {};
    }
    for (char c : text.substr(0, count)) {
      if (!values.contains(c)) {
        return {};
      }
      step.inputs.push_back(values.at(c));
    }
    text.remove_prefix(count);
    values[name] = inputs + static_cast<int>(steps.size());
    steps.push_back(std::move(step));
  }
  return complete && inputs <= 24 ? std::optional(std::move(steps)) : std::nullopt;
}

mx::array elementwise(std::string_view kind, const Arrays& inputs, mx::Dtype dtype) {
  if (auto it = unary.find(kind); it != unary.end()) {
    return it->second(inputs[0], {});
  }
  if (auto it = binary.find(kind); it != binary.end()) {
    return it->second(inputs[0], inputs[1], {});
  }
  if (kind == "AsType") {
    return mx::astype(inputs[0], dtype);
  }
  if (kind == "Select") {
    return mx::where(inputs[0], inputs[1], inputs[2]);
  }
  fail("emit", "a node of kind ", kind, " has no primitive to run.");
}

} // namespace zmlx
