// zmlx/ops/pack_bits.cpp: eight booleans a byte, the first in the lowest bit, and back.
#include <algorithm>
#include <cstring>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr int64_t grain = 64; // bytes of bits

mx::array places() {
  return mx::arange(8, mx::uint8);
}

Types pack_types(const Types& in, const Attrs&) {
  expect_inputs("pack_bits", in, 1);
  expect_dtype("pack_bits", "x", in[0], Dtype::boolean);
  return {{Dtype::u8, {(in[0].shape.size() + 7) / 8}}};
}

Arrays pack_reference(const Arrays& in, const Attrs&) {
  const int n = static_cast<int>(in[0].size());
  auto x = mx::pad(mx::flatten(in[0]), std::pair{0, (8 - n % 8) % 8});
  auto bits = mx::left_shift(mx::astype(mx::reshape(x, {(n + 7) / 8, 8}), mx::uint8), places());
  return {mx::astype(mx::sum(bits, -1), mx::uint8)};
}

/// Eight bools, one a byte, as the bits of one.
uint8_t packed_byte(uint64_t eight) {
  // Byte k's bit lands at 56 + k; no two terms of the product meet.
  return static_cast<uint8_t>((eight * 0x0102040810204080u) >> 56);
}

/// The inverse of packed_byte().
uint64_t unpacked_byte(uint8_t byte) {
  // Bit k of the byte alone in byte k, then any of them to 1.
  const uint64_t spread = (byte * 0x0101010101010101u) & 0x8040201008040201u;
  return ((spread + 0x7F7F7F7F7F7F7F7Fu) >> 7) & 0x0101010101010101u;
}

void pack(const Call& call, Member& member) {
  const auto* x = call.in[0].as<uint8_t>();
  auto* out = call.out[0].as<uint8_t>();
  const int64_t n = call.in[0].shape().size();
  const Range part = member.split(call.out[0].shape().size(), grain);
  const int64_t whole = std::min(part.end, n / 8);
  for (int64_t i = part.begin; i < whole; ++i) {
    uint64_t eight;
    std::memcpy(&eight, x + 8 * i, 8);
    out[i] = packed_byte(eight);
  }
  if (part.begin < part.end && whole < part.end) {
    uint64_t rest = 0;
    std::memcpy(&rest, x + n / 8 * 8, static_cast<size_t>(n % 8));
    out[n / 8] = packed_byte(rest);
  }
}

Shape unpacked_shape(const Attrs& attrs) {
  auto& list = attrs.list("shape");
  return Shape(list.begin(), list.end());
}

Types unpack_types(const Types& in, const Attrs& attrs) {
  constexpr const char* name = "unpack_bits";
  expect_inputs(name, in, 1);
  expect_dtype(name, "x", in[0], Dtype::u8);
  const int64_t bits = 8 * in[0].shape.size();
  const Shape shape = attrs.has("shape") ? unpacked_shape(attrs) : Shape{bits};
  const bool fits = std::all_of(shape.begin(), shape.end(), [](int64_t d) { return d >= 0; }) &&
      shape.size() <= bits && bits - shape.size() < 8;
  if (!fits) {
    fail(
        name,
        "shape must have ",
        std::max<int64_t>(0, bits - 7),
        " to ",
        bits,
        " elements, as x has bits, but got ",
        to_string(shape),
        ".");
  }
  return {{Dtype::boolean, shape}};
}

Arrays unpack_reference(const Arrays& in, const Attrs& attrs) {
  auto bits = mx::right_shift(mx::expand_dims(mx::flatten(in[0]), -1), places());
  auto x = mx::flatten(mx::astype(mx::bitwise_and(bits, mx::array(1, mx::uint8)), mx::bool_));
  if (!attrs.has("shape")) {
    return {x};
  }
  auto& list = attrs.list("shape");
  const Shape shape = unpacked_shape(attrs);
  mx::Shape to;
  for (int64_t extent : list) {
    to.push_back(static_cast<int>(extent));
  }
  return {mx::reshape(mx::slice(x, {0}, {static_cast<int>(shape.size())}), to)};
}

void unpack(const Call& call, Member& member) {
  const auto* x = call.in[0].as<uint8_t>();
  auto* out = call.out[0].as<uint8_t>();
  const int64_t n = call.out[0].shape().size();
  const Range part = member.split(call.in[0].shape().size(), grain);
  const int64_t whole = std::min(part.end, n / 8);
  for (int64_t i = part.begin; i < whole; ++i) {
    const uint64_t eight = unpacked_byte(x[i]);
    std::memcpy(out + 8 * i, &eight, 8);
  }
  if (part.begin < part.end && whole < part.end) {
    const uint64_t rest = unpacked_byte(x[n / 8]);
    std::memcpy(out + n / 8 * 8, &rest, static_cast<size_t>(n % 8));
  }
}

/// Either kernel: a thread a byte of bits.
cuda::Kernel launch_bytes(const char* kernel, int64_t bytes, int64_t bits) {
  if (!cuda::countable({(bytes + 255) / 256})) {
    return {};
  }
  auto launch = cuda::thread_a_unit("bits.cuh", kernel, bytes);
  launch.arguments = {cuda::in(0), cuda::out(0), cuda::extent(bits)};
  return {{launch}, 0};
}

Case packed(std::string name, mx::Shape shape) {
  return {
      std::move(name),
      [shape](mx::Dtype) { return Arrays{random_case(shape, mx::float32, 1) > mx::array(0.0f)}; },
      {}};
}

Case unpacked(std::string name, mx::Shape bytes, Attrs attrs) {
  return {
      std::move(name),
      [bytes](mx::Dtype) {
        auto spread = mx::abs(random_case(bytes, mx::float32, 1, 1000));
        return Arrays{mx::astype(mx::astype(spread, mx::int32), mx::uint8)};
      },
      std::move(attrs)};
}

Attrs shaped(std::vector<int64_t> shape) {
  return {{"shape", std::move(shape)}};
}

} // namespace

ZMLX_OP(pack_bits)
    .args({"x"})
    .doc(
        "Bools x [..] in row-major order as bits, eight a byte, the first in the lowest bit: uint8 "
        "[(N + 7) / 8] for N elements, filled up with zeros.")
    .types(pack_types)
    .reference(pack_reference)
    .cpu([](const Types&, const Types&, const Attrs&) { return CpuKernel{pack}; })
    .cuda([](const Types& in, const Types& out, const Attrs&, const cuda::Device&) {
      return launch_bytes("pack_bits", out[0].shape.size(), in[0].shape.size());
    })
    .cases({
        packed("rows", {37, 512}),
        packed("prime", {1009}),
        packed("over", {33}),
        packed("tail", {31}),
        packed("even", {4, 8}),
        packed("one", {}),
        packed("empty", {0, 8}),
    });

ZMLX_OP(unpack_bits)
    .args({"x"})
    .doc(
        "The bits of uint8 x [..] as bools, the lowest bit of each byte first: [8 N] for N bytes, or "
        "the given shape, to which up to seven bits at the end may not belong.")
    .types(unpack_types)
    .reference(unpack_reference)
    .cpu([](const Types&, const Types&, const Attrs&) { return CpuKernel{unpack}; })
    .cuda([](const Types& in, const Types& out, const Attrs&, const cuda::Device&) {
      return launch_bytes("unpack_bits", in[0].shape.size(), out[0].shape.size());
    })
    .cases({
        unpacked("flat", {301}, {}),
        unpacked("shape", {5}, shaped({3, 13})),
        unpacked("rows", {7, 64}, shaped({7, 512})),
        unpacked("one", {1}, shaped({})),
        unpacked("empty", {0}, {}),
    });

} // namespace zmlx
