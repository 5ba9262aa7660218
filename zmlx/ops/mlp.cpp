// zmlx/ops/mlp.cpp: down(activation(gate(x)) * up(x)), with a norm before and a residual after.
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cuda/linear.h"
#include "zmlx/ops/activations.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

constexpr const char* name = "mlp";

struct Mlp {
  WeightKind kind;
  bool norm;
  float eps;
  bool residual;
  bool exact;
  const ActivationRow* activation;

  bool is_silu() const {
    return activation->kernel == cpu::Activation::silu;
  }
  /// The inputs where gate (0), up (1) and down (2) begin.
  size_t weight(size_t i) const {
    return 1 + norm + i * kind.inputs();
  }
};

Mlp settings(const Attrs& attrs) {
  Mlp op{
      product_kind(name, attrs),
      attrs.integer("norm", 0) != 0,
      static_cast<float>(attrs.real("eps", 0)),
      attrs.integer("residual", 0) != 0,
      attrs.integer("exact", 0) != 0,
      &activation_named(name, attrs.text("activation"))};
  if (op.exact && !op.is_silu()) {
    fail(name, "exact=1 needs activation silu but got ", op.activation->name, ".");
  }
  return op;
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.weight(3) + op.residual);
  auto& x = in[0];
  expect_floating(name, "x", x);
  if (x.shape.rank() == 0) {
    fail(name, "x must have at least 1 axis but got a number.");
  }
  if (op.norm) {
    expect_dtype(name, "norm_weight", in[1], x.dtype);
    expect_shape(name, "norm_weight", in[1], {x.shape[-1]});
  }
  Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, x.dtype, 2);
  Shape up = expect_weight(name, "up", in, op.weight(1), op.kind, x.dtype, 2);
  Shape down = expect_weight(name, "down", in, op.weight(2), op.kind, x.dtype, 2);
  if (gate[1] != x.shape[-1] || !(up == gate) || down[1] != gate[0]) {
    fail(
        name,
        "gate and up must be (F, ",
        x.shape[-1],
        ") and down (D, F) but they are ",
        to_string(gate),
        ", ",
        to_string(up),
        " and ",
        to_string(down),
        ".");
  }
  Type out = x;
  out.shape[-1] = down[0];
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), x.dtype);
    expect_shape(name, "residual", in.back(), out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto x = op.norm ? mx::fast::rms_norm(in[0], in[1], op.eps) : in[0];
  auto gate = weight_matmul(x, in, op.weight(0), op.kind);
  auto up = weight_matmul(x, in, op.weight(1), op.kind);
  auto hidden = gate * mx::sigmoid(gate) * up;
  if (!op.is_silu()) {
    const float parameter = op.activation->parameter_of();
    auto gates = op.activation->reference(mx::astype(gate, mx::float32), parameter);
    hidden = mx::astype(gates * mx::astype(up, mx::float32), gate.dtype());
  }
  auto out = weight_matmul(hidden, in, op.weight(2), op.kind);
  return {op.residual ? in.back() + out : out};
}

struct Kernel {
  Mlp op;
  cpu::Matmul in; // gate and up
  cpu::Matmul out; // down
  // Scratch, in bytes: prepared x, hidden rows, prepared hidden rows.
  size_t hidden_at = 0;
  size_t prepared_at = 0;

  void operator()(const Call& call, Member& member) const;
};

void Kernel::operator()(const Call& call, Member& member) const {
  const Dtype dtype = in.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const int64_t inner = out.k();
  const Tensor& x = call.in[0];
  const Tensor& result = call.out[0];
  std::byte* hidden = call.scratch + hidden_at;
  cpu::LocalRows local;
  auto rows = cpu::prepare_rows(
      in,
      x.data,
      x.shape().rows(),
      {op.norm ? call.in[1].data : nullptr, op.eps},
      call.scratch,
      local,
      member);
  const auto gate = weight_at(call, op.weight(0), op.kind);
  const auto up = weight_at(call, op.weight(1), op.kind);
  const Range mine = member.split(inner, cpu::split_grain(rows.count));
  cpu::for_pairs_in(
      in,
      gate,
      up,
      mine,
      rows,
      [&](Range j, int64_t first, int64_t count, float* g, float* u, int64_t ld) {
        const int64_t n = j.end - j.begin;
        for (int64_t i = 0; i < count; ++i, g += ld, u += ld) {
          if (op.exact) {
            cpu::round_row(dtype, g, n);
            cpu::round_row(dtype, u, n);
          }
          if (op.is_silu()) {
            cpu::swiglu_row(dtype, g, u, n, op.exact);
          } else {
            const float parameter = op.activation->parameter_of();
            cpu::activate(op.activation->kernel, Dtype::f32, g, u, n, g, parameter);
          }
          cpu::store_row(dtype, g, hidden + ((first + i) * inner + j.begin) * size, n);
        }
      });
  member.barrier();

  rows = cpu::prepare_rows(out, hidden, rows.count, {}, call.scratch + prepared_at, local, member);
  const int64_t width = result.shape()[-1];
  const auto* residual = op.residual ? call.in.back().as<std::byte>() : nullptr;
  const auto down = weight_at(call, op.weight(2), op.kind);
  const Range outputs = member.split(width, cpu::split_grain(rows.count));
  cpu::for_blocks_in(
      out, down, outputs, rows, [&](Range j, int64_t first, int64_t count, float* y, int64_t ld) {
        const int64_t n = j.end - j.begin;
        for (int64_t i = 0; i < count; ++i, y += ld) {
          const int64_t place = ((first + i) * width + j.begin) * size;
          if (residual) {
            float values[cpu::block_outputs];
            if (op.exact) {
              cpu::round_row(dtype, y, n);
            }
            cpu::load_row(dtype, residual + place, values, n);
            cpu::axpy_row(1, values, y, n);
          }
          cpu::store_row(dtype, y, result.as<std::byte>() + place, n);
        }
      });
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  const Dtype dtype = in[0].dtype;
  const int64_t inner = in[op.weight(0)].shape[0];
  const Shape& x = in[0].shape;
  if (!cpu::Matmul::supports(dtype, op.kind.format, x[-1]) ||
      !cpu::Matmul::supports(dtype, op.kind.format, inner)) {
    return {};
  }
  const auto activations = op.kind.activations;
  Kernel run{
      op,
      {dtype, op.kind.format, x[-1], activations, x.rows()},
      {dtype, op.kind.format, inner, activations, x.rows()}};
  const size_t hidden = static_cast<size_t>(x.rows() * inner) * size_of(dtype);
  run.hidden_at = cpu::prepare_scratch(run.in, x.rows());
  run.prepared_at = run.hidden_at + (hidden + 63) / 64 * 64;
  return {run, run.prepared_at + cpu::prepare_scratch(run.out, x.rows())};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const Shape& x = in[0].shape;
  if (x.size() == 0 || !op.is_silu() || op.kind.activations != cpu::Activations::exact) {
    return {};
  }
  auto at = [&](size_t i) { return static_cast<int>(op.weight(i)); };
  const auto& format = op.kind.format;
  const auto gate = expect_weight(name, "gate", in, op.weight(0), op.kind, in[0].dtype, 2);
  const int64_t inner = gate[0];
  cuda::Linear first{in[0].dtype, format, x.rows(), x[-1], cuda::in(0)};
  first.has_norm = op.norm;
  first.norm = cuda::in(1);
  first.eps = op.eps;
  first.exact = op.exact;
  first.pair = true;
  first.outputs = {
      cuda::linear_output(format, at(0), cuda::scratch(), inner),
      cuda::linear_output(format, at(1), cuda::scratch(), inner)};
  cuda::Linear second{in[0].dtype, format, x.rows(), inner, cuda::scratch()};
  second.has_residual = op.residual;
  second.residual = cuda::in(static_cast<int>(in.size()) - 1);
  second.exact = op.exact;
  second.outputs = {cuda::linear_output(format, at(2), cuda::out(0), out[0].shape[-1])};
  cuda::Kernel kernel;
  kernel.scratch = static_cast<size_t>(x.rows() * inner) * size_of(in[0].dtype);
  cuda::push_linear(kernel, first, device);
  cuda::push_linear(kernel, second, device);
  return kernel;
}

Case example(std::string label, mx::Shape x, int inner, Attrs attrs) {
  if (!attrs.has("activation")) {
    attrs.set("activation", std::string("silu"));
  }
  attrs.set("eps", 1e-6);
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        Arrays in = {random_case(x, dtype, 1)};
        if (op.norm) {
          in.push_back(random_case({x.back()}, dtype, 2));
        }
        push_random_weight(in, {inner, x.back()}, op.kind, dtype, 3);
        push_random_weight(in, {inner, x.back()}, op.kind, dtype, 4);
        push_random_weight(in, {x.back(), inner}, op.kind, dtype, 5);
        if (op.residual) {
          in.push_back(random_case(x, dtype, 6));
        }
        return in;
      },
      attrs};
}

const Attrs norm_and_residual = {{"norm", int64_t{1}}, {"residual", int64_t{1}}};

} // namespace

ZMLX_OP(mlp)
    .args({"x", "*rest"})
    .doc(
        "A gated MLP (Shazeer, 2020): down(activation(gate(x)) * up(x)) for x [.., K], gate and up [F, K], "
        "down [D, F] (mode none, or quantised with group_size and bits): [.., D]. norm=1: x is "
        "RMS-normalised first (input norm_weight [K]; eps). residual=1: the last input [.., D] is "
        "added. Inputs: x, [norm_weight], gate, up, down (codes, scales, biases, or what else the "
        "mode has), [residual]. The hidden values are rounded to the dtype; exact=1 also rounds where the unfused "
        "graph does. activations=int8: x and the hidden values "
        "are rounded as linear says.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .rounds_activations()
    .cases({
        example("decode", {1, 1, 512}, 1536, weight_attrs(4, 64, norm_and_residual)),
        example("few rows", {3, 128}, 320, weight_attrs(8, 64)),
        example("prompt", {2, 37, 192}, 448, weight_attrs(4, 64, norm_and_residual)),
        example("prompt 8 bit", {140, 64}, 160, weight_attrs(8, 32, {{"residual", int64_t{1}}})),
        example("odd bits", {2, 128}, 64, weight_attrs(6, 32)),
        example("three bits", {1, 192}, 448, weight_attrs(3, 64, norm_and_residual)),
        example("mxfp4", {1, 1, 512}, 96, weight_attrs("mxfp4", norm_and_residual)),
        example("mxfp8", {5, 64}, 96, weight_attrs("mxfp8")),
        example("nvfp4", {9, 48}, 80, weight_attrs("nvfp4", norm_and_residual)),
        example("dense", {1, 97}, 131, weight_attrs(0, 0, {{"norm", int64_t{1}}})),
        example("dense prompt", {33, 31}, 33, weight_attrs(0, 0, norm_and_residual)),
        example(
            "exact",
            {5, 128},
            256,
            weight_attrs(4, 64, {{"residual", int64_t{1}}, {"exact", int64_t{1}}})),
        example("gelu", {3, 64}, 96, weight_attrs(4, 32, {{"activation", std::string("gelu")}})),
        example(
            "gelu, tanh form",
            {33, 31},
            37,
            weight_attrs(0, 0, {{"activation", std::string("gelu_tanh")}})),
        example("one", {1}, 1, weight_attrs(0, 0)),
        example("empty", {0, 64}, 64, weight_attrs(4, 64)),
    });

} // namespace zmlx
