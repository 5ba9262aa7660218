// zmlx/ops/dequantise_blocks.cpp: codes of plain formats (integers, fp8, NF4) with one scale, or
// one a block.
#include <array>
#include <bit>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/minifloat.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/ops/activations.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "dequantise_blocks";
constexpr int64_t piece = 2048; // elements that one step decodes

using Values = std::array<float, 256>;

/// Quantiles of the normal distribution, scaled to [-1, 1] (Dettmers et al., 2023).
constexpr float nf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f};

/// fp8 up to 57344; the largest exponent is infinity and NaN.
constexpr float from_e5m2(uint32_t code) {
  const uint32_t magnitude = code & 127;
  const float size = magnitude >= 124
      ? std::bit_cast<float>(magnitude == 124 ? 0x7F800000u : 0x7FC00000u)
      : cpu::minifloat(magnitude, 2, -14);
  return code & 128 ? -size : size;
}

/// A code's value, by its bits.
struct Format {
  const char* name;
  int bits;
  Dtype codes;
  float (*value)(uint32_t code);
};

constexpr Format formats[] = {
    {"int8", 8, Dtype::i8, [](uint32_t c) { return static_cast<float>(static_cast<int8_t>(c)); }},
    {"uint8", 8, Dtype::u8, [](uint32_t c) { return static_cast<float>(c); }},
    {"int4",
     4,
     Dtype::u8,
     [](uint32_t c) { return static_cast<float>(static_cast<int>(c ^ 8u) - 8); }},
    {"uint4", 4, Dtype::u8, [](uint32_t c) { return static_cast<float>(c); }},
    {"e4m3", 8, Dtype::u8, [](uint32_t c) { return cpu::from_e4m3(c); }},
    {"e5m2", 8, Dtype::u8, [](uint32_t c) { return from_e5m2(c); }},
    {"nf4", 4, Dtype::u8, [](uint32_t c) { return nf4[c]; }},
};

const Format& format_of(const Attrs& attrs) {
  const std::string& asked = attrs.text("format");
  std::string names;
  for (auto& row : formats) {
    if (asked == row.name) {
      return row;
    }
    names += (names.empty() ? "" : ", ") + std::string(row.name);
  }
  fail(name, "format must be one of ", names, " but got ", asked, ".");
}

Values values_of(const Format& format) {
  Values values{};
  for (uint32_t code = 0; code < 1u << format.bits; ++code) {
    values[code] = format.value(code);
  }
  return values;
}

const ActivationRow* activation_of(const Attrs& attrs) {
  const std::string asked = attrs.has("activation") ? attrs.text("activation") : "none";
  return asked == "none" ? nullptr : &activation_named(name, asked);
}

Types types(const Types& in, const Attrs& attrs) {
  auto& format = format_of(attrs);
  activation_of(attrs);
  expect_inputs(name, in, 2);
  expect_dtype(name, "x", in[0], format.codes);
  expect_floating(name, "scales", in[1]);
  Shape shape = in[0].shape;
  if (format.bits == 4) {
    if (shape.rank() == 0) {
      fail(name, "x must have at least 1 axis but got a number.");
    }
    shape[-1] *= 2;
  }
  const int64_t block = attrs.integer("block_size", 0);
  if (block < 0) {
    fail(name, "block_size must not be negative but got ", block, ".");
  }
  const int64_t blocks = block ? (shape.size() + block - 1) / block : 1;
  if (in[1].shape.size() != blocks) {
    fail(
        name,
        "scales must have ",
        blocks,
        blocks == 1 ? " element" : " elements",
        ", one for each block, but got shape ",
        to_string(in[1].shape),
        ".");
  }
  return {{in[1].dtype, shape}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto& format = format_of(attrs);
  const auto values = values_of(format);
  const auto table = mx::array(values.data(), {1 << format.bits}, mx::float32);
  auto codes = mx::view(in[0], mx::uint8);
  auto shape = in[0].shape();
  if (format.bits == 4) {
    auto low = mx::bitwise_and(codes, mx::array(15, mx::uint8));
    codes = mx::stack({low, mx::right_shift(codes, mx::array(4, mx::uint8))}, -1);
    shape.back() *= 2;
  }
  auto y = mx::take(table, mx::flatten(mx::astype(codes, mx::uint32)), 0);
  auto scales = mx::flatten(mx::astype(in[1], mx::float32));
  if (const auto block = static_cast<int>(attrs.integer("block_size", 0))) {
    scales = mx::slice(mx::repeat(scales, block), {0}, {static_cast<int>(y.size())});
  }
  y = y * scales;
  if (auto* activation = activation_of(attrs)) {
    y = activation->reference(y, activation->parameter_of());
  }
  return {mx::astype(mx::reshape(y, shape), in[1].dtype())};
}

/// Values of elements [first, first + n), `first` even.
void look_up(
    const Format& format,
    const Values& values,
    const void* x,
    int64_t first,
    int64_t n,
    float* to) {
  const auto* codes = static_cast<const uint8_t*>(x);
  if (format.bits == 8) {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = values[codes[first + i]];
    }
    return;
  }
  codes += first / 2;
  for (int64_t i = 0; i < n; i += 2) {
    to[i] = values[codes[i / 2] & 15u];
    to[i + 1] = values[codes[i / 2] >> 4];
  }
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  auto& format = format_of(attrs);
  return {[&format,
           values = values_of(format),
           block = attrs.integer("block_size", 0),
           activation = activation_of(attrs)](const Call& call, Member& member) {
    const Tensor& scales = call.in[1];
    const Tensor& out = call.out[0];
    const auto size = static_cast<int64_t>(size_of(out.dtype()));
    const Range part = member.split(out.shape().size(), piece);
    alignas(64) float to[piece];
    for (int64_t i = part.begin; i < part.end; i += piece) {
      const int64_t count = std::min(piece, part.end - i);
      look_up(format, values, call.in[0].data, i, count, to);
      for (int64_t at = i; at < i + count;) {
        const int64_t number = block ? at / block : 0;
        const int64_t end = block ? std::min((number + 1) * block, i + count) : i + count;
        float scale = 0;
        cpu::load_row(scales.dtype(), scales.as<std::byte>() + number * size, &scale, 1);
        cpu::scale_row(scale, to + at - i, end - at);
        at = end;
      }
      if (activation) {
        const float parameter = activation->parameter_of();
        cpu::activate(activation->kernel, Dtype::f32, nullptr, to, count, to, parameter);
      }
      cpu::store_row(out.dtype(), to, out.as<std::byte>() + i * size, count);
    }
  }};
}

Case example(
    std::string label,
    const char* format,
    mx::Shape shape,
    int block,
    const char* activation = "none") {
  Attrs attrs = {
      {"format", std::string(format)},
      {"block_size", int64_t{block}},
      {"activation", std::string(activation)}};
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto& row = format_of(attrs);
        // Few codes of e5m2 are so large that float16 would overflow.
        const int most = std::string(format) == "e5m2" ? 80 : 256;
        auto codes = mx::random::randint(0, most, shape, mx::uint8, mx::random::key(1));
        const auto n = static_cast<int>(codes.size()) * 8 / row.bits;
        auto scales = random_case({block ? (n + block - 1) / block : 1}, dtype, 2, 0.01f);
        return Arrays{row.codes == Dtype::i8 ? mx::view(codes, mx::int8) : codes, scales};
      },
      attrs};
}

} // namespace

ZMLX_OP(dequantise_blocks)
    .args({"x", "scales"})
    .doc(
        "The values of 8-bit codes x [..], or of pairs of 4-bit codes x [.., N / 2] (uint8, the lower "
        "half first), times a scale: one number, or one for each block_size elements in row-major "
        "order. Computed in float32, in the scales' dtype. Formats: int8, uint8, int4 (-8 to 7), uint4 "
        "(0 to 15), e4m3 and e5m2 (fp8), nf4 (Dettmers et al., 2023).")
    .function(
        {{"format", "of the codes: int8, uint8, int4, uint4, e4m3, e5m2 or nf4", std::nullopt},
         {"block_size", "elements that share a scale; 0: all", int64_t{0}},
         {"activation", "applied to the values: none, silu, gelu, ...", std::string("none")}})
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cases({
        example("int8", "int8", {37, 100}, 0),
        example("uint8 in blocks", "uint8", {3, 1000}, 128),
        example("int4, silu", "int4", {31, 33}, 32, "silu"),
        example("uint4", "uint4", {5000}, 64),
        example("e4m3", "e4m3", {13, 8}, 0),
        example("e5m2", "e5m2", {3, 31}, 7),
        example("nf4", "nf4", {2, 32}, 64),
        example("nf4, gelu", "nf4", {1}, 0, "gelu"),
        example("one", "int8", {}, 0),
        example("empty", "int8", {0, 8}, 4),
    });

} // namespace zmlx
