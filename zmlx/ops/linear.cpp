// zmlx/ops/linear.cpp: one or more linear layers of the same input, with a norm before and a
// residual after.
#include "zmlx/kernel/cuda/linear.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

constexpr const char* name = "linear";

struct Linear {
  WeightKind kind;
  size_t outputs;
  bool norm;
  float eps;
  bool bias;
  bool residual;
  bool exact;

  /// The input where output i's weight begins.
  size_t weight(size_t i) const {
    return 1 + norm + i * (kind.inputs() + bias);
  }
  size_t inputs() const {
    return weight(outputs) + residual;
  }
};

Linear settings(const Attrs& attrs) {
  const int64_t outputs = attrs.integer("outputs", 1);
  if (outputs < 1) {
    fail(name, "outputs must be at least 1 but got ", outputs, ".");
  }
  Linear op{
      product_kind(name, attrs),
      static_cast<size_t>(outputs),
      attrs.integer("norm", 0) != 0,
      static_cast<float>(attrs.real("eps", 0)),
      attrs.integer("bias", 0) != 0,
      attrs.integer("residual", 0) != 0,
      attrs.integer("exact", 0) != 0};
  if (op.residual && outputs != 1) {
    fail(name, "a residual needs outputs=1 but got outputs=", outputs, ".");
  }
  return op;
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.inputs());
  auto& x = in[0];
  expect_floating(name, "x", x);
  if (x.shape.rank() == 0) {
    fail(name, "x must have at least 1 axis but got a number.");
  }
  if (op.norm) {
    expect_dtype(name, "norm_weight", in[1], x.dtype);
    expect_shape(name, "norm_weight", in[1], {x.shape[-1]});
  }
  Types out;
  for (size_t i = 0; i < op.outputs; ++i) {
    const size_t at = op.weight(i);
    Shape weight = expect_weight(name, "weight", in, at, op.kind, x.dtype, 2);
    if (weight[1] != x.shape[-1]) {
      fail(
          name,
          "weight must have x's last axis, ",
          x.shape[-1],
          ", for its own but is ",
          to_string(weight),
          ".");
    }
    if (op.bias) {
      auto& bias = in[at + op.kind.inputs()];
      expect_dtype(name, "bias", bias, x.dtype);
      expect_shape(name, "bias", bias, {weight[0]});
    }
    out.push_back(x);
    out.back().shape[-1] = weight[0];
  }
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), x.dtype);
    expect_shape(name, "residual", in.back(), out[0].shape);
  }
  return out;
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto x = op.norm ? mx::fast::rms_norm(in[0], in[1], op.eps) : in[0];
  Arrays out;
  for (size_t i = 0; i < op.outputs; ++i) {
    out.push_back(weight_matmul(x, in, op.weight(i), op.kind));
    if (op.bias) {
      out.back() = out.back() + in[op.weight(i) + op.kind.inputs()];
    }
  }
  if (op.residual) {
    out[0] = in.back() + out[0];
  }
  return out;
}

/// Adds n elements at `extra`, first rounding y where the unfused graph would have an array.
void add(const Linear& op, Dtype dtype, float* y, const std::byte* extra, int64_t n) {
  float values[cpu::block_outputs];
  if (op.exact) {
    cpu::round_row(dtype, y, n);
  }
  cpu::load_row(dtype, extra, values, n);
  cpu::axpy_row(1, values, y, n);
}

void run(const Linear& op, const cpu::Matmul& matmul, const Call& call, Member& member) {
  const Dtype dtype = matmul.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  cpu::LocalRows local;
  auto rows = cpu::prepare_rows(
      matmul,
      call.in[0].data,
      call.in[0].shape().rows(),
      {op.norm ? call.in[1].data : nullptr, op.eps},
      call.scratch,
      local,
      member);
  int64_t total = 0;
  for (auto& out : call.out) {
    total += out.shape()[-1];
  }
  // All outputs are one range, so that members get equal parts whatever their widths.
  const Range mine = member.split(total, cpu::split_grain(rows.count));
  int64_t before = 0;
  for (size_t o = 0; o < op.outputs; ++o) {
    const Tensor& out = call.out[o];
    const int64_t width = out.shape()[-1];
    const Range part{
        std::clamp(mine.begin - before, int64_t{0}, width),
        std::clamp(mine.end - before, int64_t{0}, width)};
    before += width;
    const size_t at = op.weight(o);
    const auto weight = weight_at(call, at, op.kind);
    const auto* bias = op.bias ? call.in[at + op.kind.inputs()].as<std::byte>() : nullptr;
    const auto* residual = op.residual ? call.in.back().as<std::byte>() : nullptr;
    cpu::for_blocks_in(
        matmul,
        weight,
        part,
        rows,
        [&](Range j, int64_t first, int64_t count, float* y, int64_t ld) {
          const int64_t n = j.end - j.begin;
          for (int64_t i = 0; i < count; ++i, y += ld) {
            const int64_t place = ((first + i) * width + j.begin) * size;
            if (bias) {
              add(op, dtype, y, bias + j.begin * size, n);
            }
            if (residual) {
              add(op, dtype, y, residual + place, n);
            }
            cpu::store_row(dtype, y, out.as<std::byte>() + place, n);
          }
        });
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  const Shape& x = in[0].shape;
  if (!cpu::Matmul::supports(in[0].dtype, op.kind.format, x[-1])) {
    return {};
  }
  cpu::Matmul matmul(in[0].dtype, op.kind.format, x[-1], op.kind.activations, x.rows());
  return {
      [op, matmul](const Call& call, Member& member) { run(op, matmul, call, member); },
      cpu::prepare_scratch(matmul, x.rows())};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const Shape& x = in[0].shape;
  if (x.size() == 0 || op.kind.activations != cpu::Activations::exact) {
    return {};
  }
  cuda::Linear linear{in[0].dtype, op.kind.format, x.rows(), x[-1], cuda::in(0)};
  linear.has_norm = op.norm;
  linear.norm = cuda::in(1);
  linear.eps = op.eps;
  linear.has_bias = op.bias;
  linear.has_residual = op.residual;
  linear.residual = cuda::in(static_cast<int>(in.size()) - 1);
  linear.exact = op.exact;
  for (size_t i = 0; i < op.outputs; ++i) {
    const auto at = static_cast<int>(op.weight(i));
    const auto to = cuda::out(static_cast<int>(i));
    linear.outputs.push_back(cuda::linear_output(op.kind.format, at, to, out[i].shape[-1]));
    if (op.bias) {
      linear.outputs.back().bias = cuda::in(at + static_cast<int>(op.kind.inputs()));
    }
  }
  cuda::Kernel kernel;
  cuda::push_linear(kernel, linear, device);
  return kernel;
}

Case example(std::string label, mx::Shape x, std::vector<int> widths, Attrs attrs) {
  attrs.set("outputs", static_cast<int64_t>(widths.size())).set("eps", 1e-6);
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        Arrays in = {random_case(x, dtype, 1)};
        if (op.norm) {
          in.push_back(random_case({x.back()}, dtype, 2));
        }
        for (size_t i = 0; i < widths.size(); ++i) {
          push_random_weight(in, {widths[i], x.back()}, op.kind, dtype, 3 + i);
          if (op.bias) {
            in.push_back(random_case({widths[i]}, dtype, 13 + i));
          }
        }
        if (op.residual) {
          auto shape = x;
          shape.back() = widths[0];
          in.push_back(random_case(shape, dtype, 23));
        }
        return in;
      },
      attrs};
}

const Attrs int8 = {{"activations", std::string("int8")}};

} // namespace

ZMLX_OP(linear)
    .args({"x", "*rest"})
    .doc(
        "x [.., K] times the transpose of each of `outputs` weights [N, K] (mode none; affine with "
        "group_size and bits: element = code * scale + bias of its group; mxfp4, mxfp8 and nvfp4: code "
        "* scale): outputs [.., N]. norm=1: x "
        "is RMS-normalised first (input norm_weight [K]; eps). bias=1: each weight is followed by a "
        "bias [N] that is added. residual=1, for one output: the last input [.., N] is added. Inputs: "
        "x, [norm_weight], weights (codes, scales, biases, or what else the mode has) with [bias], [residual]. "
        "Sums are float32; exact=1 also rounds to the dtype before each addition. activations=int8 "
        "(affine, mxfp4, nvfp4): each group of x is rounded to integers up to 127 times a float32 scale "
        "before the products; a group with a NaN or an infinity becomes NaN.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .rounds_activations()
    .cases({
        example(
            "decode",
            {1, 1, 1024},
            {1024, 256, 256},
            weight_attrs(4, 64, {{"norm", int64_t{1}}})),
        example(
            "decode residual",
            {1, 1, 1024},
            {1024},
            weight_attrs(4, 64, {{"residual", int64_t{1}}})),
        example("decode 8 bit", {1, 512}, {301}, weight_attrs(8, 128)),
        example("few rows", {3, 1, 320}, {97, 33}, weight_attrs(4, 32, {{"bias", int64_t{1}}})),
        example(
            "prompt",
            {2, 37, 256},
            {131, 64},
            weight_attrs(4, 128, {{"norm", int64_t{1}}, {"bias", int64_t{1}}})),
        example(
            "prompt 8 bit",
            {1, 150, 192},
            {65},
            weight_attrs(8, 32, {{"residual", int64_t{1}}, {"bias", int64_t{1}}})),
        example("batch 8 bit", {9, 512}, {40}, weight_attrs(8, 128)),
        example("odd bits", {1, 2, 192}, {33}, weight_attrs(3, 64)),
        example("five bits", {9, 64}, {31}, weight_attrs(5, 32)),
        example("two bits", {9, 64}, {31}, weight_attrs(2, 32)),
        example("six bits", {1, 384}, {65}, weight_attrs(6, 128)),
        example("mxfp4", {1, 1024}, {97}, weight_attrs("mxfp4", {{"norm", int64_t{1}}})),
        example("mxfp4 prompt", {33, 96}, {65, 31}, weight_attrs("mxfp4")),
        example("mxfp8", {4, 160}, {33}, weight_attrs("mxfp8", {{"residual", int64_t{1}}})),
        example("mxfp8 prompt", {37, 64}, {64}, weight_attrs("mxfp8")),
        example("nvfp4", {1, 48}, {34}, weight_attrs("nvfp4")),
        example("nvfp4 prompt", {17, 528}, {40}, weight_attrs("nvfp4", {{"bias", int64_t{1}}})),
        example("dense", {1, 1, 515}, {97}, weight_attrs(0, 0, {{"norm", int64_t{1}}})),
        example("dense prompt", {33, 97}, {131}, weight_attrs(0, 0, {{"residual", int64_t{1}}})),
        example(
            "exact",
            {5, 256},
            {64},
            weight_attrs(
                4,
                64,
                {{"norm", int64_t{1}},
                 {"bias", int64_t{1}},
                 {"residual", int64_t{1}},
                 {"exact", int64_t{1}}})),
        example("int8", {1, 1, 512}, {96}, weight_attrs(4, 64, int8)),
        example("int8 prompt", {3, 13, 192}, {65, 32}, weight_attrs(5, 32, int8)),
        example("int8 mxfp4", {2, 192}, {31}, weight_attrs("mxfp4", int8)),
        example("one", {1}, {1}, weight_attrs(0, 0)),
        example("empty", {0, 64}, {32}, weight_attrs(4, 64, {{"norm", int64_t{1}}})),
    });

} // namespace zmlx
