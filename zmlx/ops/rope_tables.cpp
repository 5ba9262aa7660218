// zmlx/ops/rope_tables.cpp: cosines and sines of rotary position embeddings, a row a position.
#include <cmath>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "rope_tables";

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs(name, in, 2);
  const int64_t tokens = attrs.integer("tokens");
  if (tokens < 0) {
    fail(name, "tokens must not be negative but got ", tokens, ".");
  }
  expect_dtype(name, "offset", in[0], Dtype::i32);
  expect_dtype(name, "inv_freq", in[1], Dtype::f32);
  expect_rank(name, "inv_freq", in[1], 1);
  if (in[0].shape.rank() > 1) {
    fail(name, "offset must be one number or [B] but got shape ", to_string(in[0].shape), ".");
  }
  Shape shape = in[0].shape;
  shape.push_back(tokens);
  shape.push_back(in[1].shape[0]);
  return {{Dtype::f32, shape}, {Dtype::f32, shape}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  const auto tokens = static_cast<int>(attrs.integer("tokens"));
  auto position =
      mx::expand_dims(mx::astype(in[0], mx::float32), -1) + mx::arange(0, tokens, mx::float32);
  auto at = position * mx::array(static_cast<float>(attrs.real("scale", 1)));
  auto angle = mx::expand_dims(at, -1) * in[1];
  return {mx::cos(angle), mx::sin(angle)};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[scale = static_cast<float>(attrs.real("scale", 1))](const Call& call, Member& member) {
    const Shape& shape = call.out[0].shape();
    const int64_t tokens = shape[-2];
    const int64_t half = shape[-1];
    const auto* offset = call.in[0].as<int32_t>();
    const auto* inv_freq = call.in[1].as<float>();
    const Range rows = member.split(shape.rows());
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const auto at = static_cast<float>(offset[row / tokens] + row % tokens) * scale;
      for (int64_t i = 0; i < half; ++i) {
        call.out[0].as<float>()[row * half + i] = std::cos(at * inv_freq[i]);
        call.out[1].as<float>()[row * half + i] = std::sin(at * inv_freq[i]);
      }
    }
  }};
}

cuda::Kernel cuda_kernel(const Types&, const Types& out, const Attrs& attrs, const cuda::Device&) {
  const Shape& table = out[0].shape;
  if (!cuda::countable({table.rows(), table[-1]})) {
    return {};
  }
  auto launch = cuda::thread_a_unit("rotary.cuh", "rope_tables", table.size());
  launch.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::out(0),
      cuda::out(1),
      cuda::i32(table.rows()),
      cuda::i32(table[-2]),
      cuda::i32(table[-1]),
      cuda::f32(attrs.real("scale", 1))};
  return {{launch}, 0};
}

Case example(std::string label, Arrays offset, int tokens, int half, double scale) {
  return {
      std::move(label),
      [=](mx::Dtype) {
        auto inv_freq = mx::exp(
            mx::arange(0, -half, -1, mx::float32) * mx::array(9.2f / static_cast<float>(half)));
        return Arrays{offset[0], inv_freq};
      },
      {{"tokens", int64_t{tokens}}, {"scale", scale}}};
}

} // namespace

ZMLX_OP(rope_tables)
    .args({"offset", "inv_freq"})
    .doc(
        "cos and sin of (offset + t) * scale * inv_freq[i] for t < tokens (Su et al., 2021): float32 "
        "[T, dims / 2], or [B, T, dims / 2] for offset [B]. offset: int32; inv_freq: float32 [dims / "
        "2].")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("one offset", {mx::array(7)}, 37, 32, 1),
        example("own offsets", {mx::array({3, 0, 100})}, 5, 33, 0.5),
        example("one", {mx::array(1)}, 1, 1, 1),
        example("empty", {mx::array(1)}, 0, 4, 1),
    });

} // namespace zmlx
