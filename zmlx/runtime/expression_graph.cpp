// zmlx/runtime/expression_graph.cpp: one MLX op for each row of the language's table.
#include "zmlx/runtime/expression_graph.h"

#include <functional>
#include <map>
#include <string_view>

#include "mlx/ops.h"
#include "mlx/transforms.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

using Args = std::vector<mx::array>;
using S = mx::StreamOrDevice;
using Build = mx::array (*)(const Args&, S);

// clang-format off
const std::map<std::string_view, Build> functions = {
    {"neg", [](const Args& a, S s) { return mx::negative(a[0], s); }},
    {"add", [](const Args& a, S s) { return mx::add(a[0], a[1], s); }},
    {"sub", [](const Args& a, S s) { return mx::subtract(a[0], a[1], s); }},
    {"mul", [](const Args& a, S s) { return mx::multiply(a[0], a[1], s); }},
    {"div", [](const Args& a, S s) { return mx::divide(a[0], a[1], s); }},
    {"floor_div", [](const Args& a, S s) { return mx::floor_divide(a[0], a[1], s); }},
    {"remainder", [](const Args& a, S s) { return mx::remainder(a[0], a[1], s); }},
    {"pow", [](const Args& a, S s) { return mx::power(a[0], a[1], s); }},
    {"min", [](const Args& a, S s) { return mx::minimum(a[0], a[1], s); }},
    {"max", [](const Args& a, S s) { return mx::maximum(a[0], a[1], s); }},
    {"abs", [](const Args& a, S s) { return mx::abs(a[0], s); }},
    {"sign", [](const Args& a, S s) { return mx::sign(a[0], s); }},
    {"floor", [](const Args& a, S s) { return mx::floor(a[0], s); }},
    {"ceil", [](const Args& a, S s) { return mx::ceil(a[0], s); }},
    {"round", [](const Args& a, S s) { return mx::round(a[0], s); }},
    {"trunc", [](const Args& a, S s) { return mx::multiply(mx::sign(a[0], s), mx::floor(mx::abs(a[0], s), s), s); }},
    {"exp", [](const Args& a, S s) { return mx::exp(a[0], s); }},
    {"expm1", [](const Args& a, S s) { return mx::expm1(a[0], s); }},
    {"log", [](const Args& a, S s) { return mx::log(a[0], s); }},
    {"log1p", [](const Args& a, S s) { return mx::log1p(a[0], s); }},
    {"sqrt", [](const Args& a, S s) { return mx::sqrt(a[0], s); }},
    {"rsqrt", [](const Args& a, S s) { return mx::rsqrt(a[0], s); }},
    {"sin", [](const Args& a, S s) { return mx::sin(a[0], s); }},
    {"cos", [](const Args& a, S s) { return mx::cos(a[0], s); }},
    {"atan", [](const Args& a, S s) { return mx::arctan(a[0], s); }},
    {"asin", [](const Args& a, S s) { return mx::arcsin(a[0], s); }},
    {"acos", [](const Args& a, S s) { return mx::arccos(a[0], s); }},
    {"tanh", [](const Args& a, S s) { return mx::tanh(a[0], s); }},
    {"erf", [](const Args& a, S s) { return mx::erf(a[0], s); }},
    {"sigmoid", [](const Args& a, S s) { return mx::sigmoid(a[0], s); }},
    {"lt", [](const Args& a, S s) { return mx::less(a[0], a[1], s); }},
    {"le", [](const Args& a, S s) { return mx::less_equal(a[0], a[1], s); }},
    {"gt", [](const Args& a, S s) { return mx::greater(a[0], a[1], s); }},
    {"ge", [](const Args& a, S s) { return mx::greater_equal(a[0], a[1], s); }},
    {"eq", [](const Args& a, S s) { return mx::equal(a[0], a[1], s); }},
    {"ne", [](const Args& a, S s) { return mx::not_equal(a[0], a[1], s); }},
    {"and", [](const Args& a, S s) { return mx::logical_and(a[0], a[1], s); }},
    {"or", [](const Args& a, S s) { return mx::logical_or(a[0], a[1], s); }},
    {"not", [](const Args& a, S s) { return mx::logical_not(a[0], s); }},
    {"bit_and", [](const Args& a, S s) { return mx::bitwise_and(a[0], a[1], s); }},
    {"bit_or", [](const Args& a, S s) { return mx::bitwise_or(a[0], a[1], s); }},
    {"bit_xor", [](const Args& a, S s) { return mx::bitwise_xor(a[0], a[1], s); }},
    {"bit_not", [](const Args& a, S s) { return mx::bitwise_invert(a[0], s); }},
    {"shift_left", [](const Args& a, S s) { return mx::left_shift(a[0], a[1], s); }},
    {"shift_right", [](const Args& a, S s) { return mx::right_shift(a[0], a[1], s); }},
    {"stop_gradient", [](const Args& a, S s) { return mx::stop_gradient(a[0], s); }},
    {"select", [](const Args& a, S s) { return mx::where(a[0], a[1], a[2], s); }},
};

using Reduce = mx::array (*)(const mx::array&, int, bool, S);
const std::map<std::string_view, Reduce> reductions = {
    {"sum", mx::sum}, {"mean", mx::mean}, {"prod", mx::prod}, {"max", mx::max}, {"min", mx::min},
};
// clang-format on

mx::Shape common(const Args& inputs) {
  mx::Shape shape;
  for (auto& x : inputs) {
    shape = mx::broadcast_shapes(shape, x.shape());
  }
  return shape;
}

/// A value for each element of a row.
mx::array whole(const mx::array& x, int n, S s) {
  auto shape = x.ndim() ? x.shape() : mx::Shape{1};
  shape.back() = n;
  return mx::broadcast_to(x, shape, s);
}

} // namespace

Args expression_graph(
    const lang::Program& program,
    const Args& inputs,
    const std::vector<mx::Dtype>& out,
    bool rows,
    S s) {
  auto shape = common(inputs);
  auto in = [&](const mx::array& x, Dtype dtype) {
    return mx::astype(x, mlx_dtype(lang::computing(dtype)), s);
  };
  Args values;
  for (auto& step : program.steps) {
    switch (step.kind) {
      case lang::Kind::input:
        values.push_back(in(inputs[static_cast<size_t>(step.input)], step.type.dtype));
        break;
      case lang::Kind::cast: {
        auto& from = values[static_cast<size_t>(step.args[0])];
        values.push_back(in(mx::astype(from, mlx_dtype(step.type.dtype), s), step.type.dtype));
        break;
      }
      case lang::Kind::call: {
        Args args;
        for (size_t i = 0; i < step.args.size(); ++i) {
          bool condition = step.function->typing == lang::Typing::choice && i == 0;
          args.push_back(
              in(values[static_cast<size_t>(step.args[i])],
                 condition ? Dtype::boolean : step.operands));
        }
        values.push_back(in(functions.at(step.function->name)(args, s), step.type.dtype));
        break;
      }
      case lang::Kind::reduce: {
        auto& from = values[static_cast<size_t>(step.args[0])];
        auto row = whole(in(from, step.operands), shape.back(), s);
        values.push_back(in(reductions.at(step.reduction->name)(row, -1, true, s), step.operands));
        break;
      }
      case lang::Kind::fold: {
        Args rows;
        for (int arg : step.args) {
          auto& of = program.steps[static_cast<size_t>(arg)];
          rows.push_back(
              whole(in(values[static_cast<size_t>(arg)], of.type.dtype), shape.back(), s));
        }
        auto acc = whole(in(values[static_cast<size_t>(step.args[0])], step.operands), 1, s);
        for (int i = 0; i < shape.back(); ++i) {
          Args now{acc};
          for (size_t k = 1; k < rows.size(); ++k) {
            now.push_back(mx::take(rows[k], mx::array({i}), -1, s));
          }
          acc = expression_graph(*step.loop, now, {mlx_dtype(step.operands)}, false, s)[0];
        }
        values.push_back(acc);
        break;
      }
      case lang::Kind::row_size:
        values.push_back(mx::array(shape.back(), mx::int32));
        break;
      default:
        values.push_back(mx::array(step.value, mlx_dtype(step.type.dtype)));
    }
  }
  Args results;
  for (size_t i = 0; i < out.size(); ++i) {
    auto at = static_cast<size_t>(program.results[i]);
    auto as = shape;
    if (rows && program.steps[at].row) {
      as.back() = 1;
    }
    results.push_back(mx::broadcast_to(mx::astype(values[at], out[i], s), as, s));
  }
  return results;
}

} // namespace zmlx
