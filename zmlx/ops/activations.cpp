// zmlx/ops/activations.cpp: one op for each activation.
#include "zmlx/ops/activations.h"

#include <cmath>
#include <limits>

#include "mlx/ops.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {
namespace {

mx::array number(double x) {
  return mx::array(static_cast<float>(x));
}

mx::array silu(const mx::array& x, float) {
  return x * mx::sigmoid(x);
}
mx::array gelu(const mx::array& x, float) {
  return x * (number(1) + mx::erf(x * number(M_SQRT1_2))) * number(0.5);
}
mx::array gelu_tanh(const mx::array& x, float) {
  auto inner = number(std::sqrt(2 / M_PI)) * (x + number(0.044715) * x * x * x);
  return number(0.5) * x * (number(1) + mx::tanh(inner));
}
mx::array relu(const mx::array& x, float) {
  return mx::maximum(x, number(0));
}
mx::array softplus(const mx::array& x, float) {
  return mx::logaddexp(x, number(0));
}
mx::array elu(const mx::array& x, float alpha) {
  auto above = mx::greater(x, number(0));
  // The branch not taken must not overflow: its derivative would be infinite.
  auto below = mx::expm1(mx::where(above, number(0), x));
  return mx::where(above, x, number(alpha) * below);
}

Types types(const char* name, const Types& in) {
  expect_inputs(name, in, 1);
  expect_floating(name, "x", in[0]);
  return {in[0]};
}

/// Positive numbers where the function has no others.
Case example(const ActivationRow& row, std::string name, mx::Shape shape) {
  const bool positive = row.kernel == cpu::Activation::log;
  return {
      std::move(name),
      [shape, positive](mx::Dtype dtype) {
        auto x = random_case(shape, dtype, 1, 1.5f);
        return Arrays{positive ? mx::abs(x) : x};
      },
      {}};
}

cuda::Kernel cuda_kernel(const ActivationRow& row, const Type& x) {
  constexpr int64_t block = 1024; // elements
  const int64_t n = x.shape.size();
  if (n == 0 || n > std::numeric_limits<int32_t>::max() || row.parameter) {
    return {};
  }
  const char* type = x.dtype == Dtype::f32 ? "float" : x.dtype == Dtype::f16 ? "f16" : "bf16";
  cuda::Launch launch;
  launch.source = "activate.cuh";
  launch.kernel = "activate<" + std::string(type) + ", activation::" + row.name + ">";
  launch.grid[0] = static_cast<uint32_t>((n + block - 1) / block);
  launch.block[0] = 256;
  launch.arguments = {cuda::in(0), cuda::out(0), cuda::i32(n)};
  return {{launch}, 0};
}

void add(const ActivationRow& row) {
  OpBuilder(row.name)
      .args({"x"})
      .doc(std::string(row.formula) + " for each element of x, computed in float32.")
      .function(row.parameter ? std::vector{*row.parameter} : std::vector<Parameter>{})
      .types([&row](const Types& in, const Attrs&) { return types(row.name, in); })
      .reference([&row](const Arrays& in, const Attrs& attrs) -> Arrays {
        auto y = row.reference(mx::astype(in[0], mx::float32), row.parameter_of(attrs));
        return {mx::astype(y, in[0].dtype())};
      })
      .cpu([&row](const Types&, const Types&, const Attrs& attrs) -> CpuKernel {
        const float parameter = row.parameter_of(attrs);
        return {[kernel = row.kernel, parameter](const Call& call, Member& member) {
          const Tensor& x = call.in[0];
          const Range part = member.split(x.shape().size(), 64);
          const int64_t at = part.begin * static_cast<int64_t>(size_of(x.dtype()));
          cpu::activate(
              kernel,
              x.dtype(),
              nullptr,
              x.as<std::byte>() + at,
              part.end - part.begin,
              call.out[0].as<std::byte>() + at,
              parameter);
        }};
      })
      .cuda(FormulaKernel{
          row.name,
          [&row](const Types&, const Attrs& attrs) -> Formula {
            return {row.call("x"), {{"x", 0}}, {{"parameter", row.parameter_of(attrs)}}};
          },
          [&row](const Types& in, const Types&, const Attrs&, const cuda::Device&) {
            return cuda_kernel(row, in[0]);
          }})
      .cases({
          example(row, "row", {1, 4096}),
          example(row, "rows", {37, 100}),
          example(row, "one", {}),
          example(row, "tail", {3, 31}),
          example(row, "over", {33}),
          example(row, "empty", {0, 8}),
      });
}

const bool registered = [] {
  for (auto& row : activations()) {
    add(row);
  }
  return true;
}();

} // namespace

const std::vector<ActivationRow>& activations() {
  using cpu::Activation;
  static const std::vector<ActivationRow> rows = {
      {"silu", Activation::silu, "x * sigmoid(x) (Elfwing et al., 2017)", silu},
      {"gelu",
       Activation::gelu,
       "x * (1 + erf(x / sqrt(2))) / 2 (Hendrycks and Gimpel, 2016)",
       gelu},
      {"gelu_tanh",
       Activation::gelu_tanh,
       "x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) (Hendrycks and Gimpel, 2016)",
       gelu_tanh},
      {"relu", Activation::relu, "max(x, 0)", relu},
      {"relu2",
       Activation::relu2,
       "max(x, 0)^2 (So et al., 2021)",
       [](auto& x, float a) { return mx::square(relu(x, a)); }},
      {"sigmoid",
       Activation::sigmoid,
       "1 / (1 + exp(-x))",
       [](auto& x, float) { return mx::sigmoid(x); }},
      {"tanh", Activation::tanh, "tanh(x)", [](auto& x, float) { return mx::tanh(x); }},
      {"softplus", Activation::softplus, "log(1 + exp(x)), without overflow,", softplus},
      {"mish",
       Activation::mish,
       "x * tanh(log(1 + exp(x))) (Misra, 2019)",
       [](auto& x, float a) { return x * mx::tanh(softplus(x, a)); }},
      {"exp", Activation::exp, "e^x", [](auto& x, float) { return mx::exp(x); }},
      {"log", Activation::log, "The natural logarithm", [](auto& x, float) { return mx::log(x); }},
      {"log_sigmoid",
       Activation::log_sigmoid,
       "log(sigmoid(x)), without overflow,",
       [](auto& x, float a) { return -softplus(-x, a); }},
      {"gelu_fast",
       Activation::gelu_fast,
       "x * sigmoid(1.702 x) (Hendrycks and Gimpel, 2016)",
       [](auto& x, float) { return x * mx::sigmoid(number(1.702) * x); }},
      {"relu6",
       Activation::relu6,
       "min(max(x, 0), 6)",
       [](auto& x, float a) { return mx::minimum(relu(x, a), number(6)); }},
      {"hardswish",
       Activation::hardswish,
       "x * min(max(x + 3, 0), 6) / 6 (Howard et al., 2019)",
       [](auto& x, float a) {
         return x * mx::minimum(relu(x + number(3), a), number(6)) * number(1.0 / 6);
       }},
      {"selu",
       Activation::selu,
       "1.0507 elu(x) for alpha = 1.6733 (Klambauer et al., 2017)",
       [](auto& x, float) { return number(1.05070099) * elu(x, 1.67326324f); }},
      {"elu",
       Activation::elu,
       "x where it is positive, else alpha (e^x - 1) (Clevert et al., 2015),",
       elu,
       Parameter{"alpha", "what is approached far below zero, with its sign changed", 1.0}},
      {"leaky_relu",
       Activation::leaky_relu,
       "x where it is positive, else negative_slope * x,",
       [](auto& x, float slope) {
         return mx::where(mx::greater(x, number(0)), x, number(slope) * x);
       },
       Parameter{"negative_slope", "the slope below zero", 0.01}},
  };
  return rows;
}

float ActivationRow::parameter_of(const Attrs& attrs) const {
  if (!parameter) {
    return 0;
  }
  return static_cast<float>(attrs.real(parameter->name, std::get<double>(*parameter->otherwise)));
}

const ActivationRow& activation_named(const char* op, const std::string& name) {
  std::string names;
  for (auto& row : activations()) {
    if (row.name == name) {
      return row;
    }
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  fail(op, "activation must be one of ", names, " but got ", name, ".");
}

} // namespace zmlx
