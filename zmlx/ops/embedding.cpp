// zmlx/ops/embedding.cpp: rows of an embedding table, dequantised.
#include <cstring>
#include <optional>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/floating.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

constexpr const char* name = "embedding";
constexpr int64_t piece = 256; // elements that one step decodes

/// The attribute that says the values' dtype where scales are bytes; the default is MLX's.
const FloatingType& asked_dtype(const Attrs& attrs) {
  return floating_named(name, attrs.has("dtype") ? attrs.text("dtype") : "bfloat16");
}

Types types(const Types& in, const Attrs& attrs) {
  auto kind = weight_kind(name, attrs);
  expect_inputs(name, in, 1 + kind.inputs());
  const bool whole = in[0].dtype >= Dtype::u8 && in[0].dtype <= Dtype::i64;
  if (!whole) {
    fail(name, "tokens must be integers but got ", name_of(in[0].dtype), ".");
  }
  if (in[0].shape.rank() >= Shape::max_rank) {
    fail(name, "tokens may have at most 7 axes but got ", to_string(in[0].shape), ".");
  }
  Dtype dtype;
  if (kind.has_dtype()) {
    auto& valued = in[kind.format.bits ? 2 : 1];
    expect_floating(name, kind.format.bits ? "table scales" : "table", valued);
    dtype = valued.dtype;
  } else {
    dtype = asked_dtype(attrs).dtype;
  }
  Shape table = expect_weight(name, "table", in, 1, kind, dtype, 2);
  Shape out = in[0].shape;
  out.push_back(table[1]);
  return {{dtype, out}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto kind = weight_kind(name, attrs);
  auto shape = in[0].shape();
  const auto dtype =
      kind.has_dtype() ? in[kind.format.bits ? 2 : 1].dtype() : asked_dtype(attrs).mlx;
  auto& f = kind.format;
  if (in[0].size() == 0) { // which MLX does not dequantise
    const int width = f.bits ? in[2].shape(-1) * f.group_size : in[1].shape(-1);
    shape.push_back(width);
    return {mx::zeros(shape, dtype)};
  }
  auto tokens = mx::flatten(in[0]);
  auto rows = [&](size_t i) { return mx::take(in[i], tokens, 0); };
  auto out = rows(1);
  if (f.bits) {
    auto biases = f.has_biases() ? std::optional(rows(3)) : std::nullopt;
    out =
        mx::dequantize(out, rows(2), biases, f.group_size, f.bits, kind.mode, std::nullopt, dtype);
  }
  shape.push_back(out.shape(-1));
  return {mx::reshape(out, shape)};
}

int64_t token_at(const Tensor& tokens, int64_t i) {
  switch (tokens.dtype()) {
    case Dtype::i32:
      return tokens.as<int32_t>()[i];
    case Dtype::u32:
      return tokens.as<uint32_t>()[i];
    default:
      return tokens.as<int64_t>()[i];
  }
}

void run(const WeightKind& kind, const Call& call, Member& member) {
  const Tensor& out = call.out[0];
  const int64_t vocabulary = call.in[1].shape()[0];
  const int64_t width = out.shape()[-1];
  const int64_t pieces = (width + piece - 1) / piece;
  const auto size = static_cast<int64_t>(size_of(out.dtype()));
  const cpu::Weight table = weight_at(call, 1, kind);
  const Range mine = member.split(out.shape().rows() * pieces);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t at = i / pieces;
    const int64_t first = i % pieces * piece;
    const int64_t count = std::min(piece, width - first);
    int64_t token = token_at(call.in[0], at);
    if (token < -vocabulary || token >= vocabulary) {
      fail(name, "tokens must be below the table's ", vocabulary, " rows but one is ", token, ".");
    }
    token += token < 0 ? vocabulary : 0;
    std::byte* to = out.as<std::byte>() + (at * width + first) * size;
    if (kind.format.bits) {
      float values[piece];
      cpu::dequantise(out.dtype(), kind.format, table, token * width + first, count, values);
      cpu::store_row(out.dtype(), values, to, count);
    } else {
      auto* from = static_cast<const std::byte*>(table.codes);
      std::memcpy(to, from + (token * width + first) * size, static_cast<size_t>(count * size));
    }
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const Dtype tokens = in[0].dtype;
  if (tokens != Dtype::i32 && tokens != Dtype::u32 && tokens != Dtype::i64) {
    return {};
  }
  return {[kind = weight_kind(name, attrs)](const Call& call, Member& member) {
    run(kind, call, member);
  }};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device&) {
  const Dtype tokens = in[0].dtype;
  const char* token = tokens == Dtype::i32 ? "int32_t"
      : tokens == Dtype::u32               ? "uint32_t"
      : tokens == Dtype::i64               ? "int64_t"
                                           : nullptr;
  if (!token || out[0].shape.size() == 0) {
    return {};
  }
  const auto format = weight_kind(name, attrs).format;
  const int64_t width = out[0].shape[-1];
  cuda::Launch launch;
  launch.source = "rows.cuh";
  launch.kernel =
      "embed<" + cuda::text_of(out[0].dtype) + ", " + cuda::text_of(format) + ", " + token + ">";
  launch.grid[0] = static_cast<uint32_t>(out[0].shape.rows());
  launch.grid[1] = static_cast<uint32_t>((width + 1023) / 1024);
  launch.block[0] = 256;
  launch.arguments = {cuda::in(0)};
  cuda::push_weight(launch.arguments, format, 1);
  launch.arguments.insert(
      launch.arguments.end(), {cuda::out(0), cuda::i32(in[1].shape[0]), cuda::i32(width)});
  return {{launch}, 0};
}

/// Only the chosen rows are read.
size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  const int bits = weight_kind(name, attrs).format.bits;
  const size_t values = static_cast<size_t>(out[0].shape.size());
  return in[0].bytes() + out[0].bytes() +
      (bits ? values * static_cast<size_t>(bits) / 8 : out[0].bytes());
}

Case example(std::string label, mx::Shape tokens, int rows, int width, Attrs attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto spread = mx::abs(random_case(tokens, mx::float32, 1, 1000));
        Arrays in = {mx::remainder(mx::astype(spread, mx::int32), mx::array(rows))};
        push_random_weight(in, {rows, width}, weight_kind(name, attrs), dtype, 2);
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(embedding)
    .args({"tokens", "*table"})
    .doc(
        "Rows of a table [V, D] for integer tokens [..]: [.., D] in the table's dtype. mode none: one "
        "input; affine: codes, scales and biases with group_size and bits, each element being code * "
        "scale + bias; mxfp4, mxfp8, nvfp4: codes and scales, values of type `dtype`. Negative tokens count from the last row. A token "
        "beyond the table is an error on the CPU and a row of NaN on a GPU.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .traffic(traffic)
    .cases({
        example("decode", {1, 1}, 500, 1024, weight_attrs(4, 64)),
        example("prompt", {2, 37}, 97, 320, weight_attrs(8, 32)),
        example("odd bits", {5}, 31, 384, weight_attrs(3, 128)),
        example("six bits", {5}, 31, 64, weight_attrs(6, 64)),
        example("mxfp4", {1, 1}, 97, 1024, weight_attrs("mxfp4")),
        example("mxfp8", {2, 3}, 31, 96, weight_attrs("mxfp8")),
        example("nvfp4", {2, 19}, 32, 48, weight_attrs("nvfp4")),
        example("dense", {3, 33}, 33, 31, weight_attrs(0, 0)),
        example("one", {}, 1, 32, weight_attrs(4, 32)),
        example("empty", {0}, 8, 64, weight_attrs(4, 64)),
    });

} // namespace zmlx
