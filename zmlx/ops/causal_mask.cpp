// zmlx/ops/causal_mask.cpp: which keys each token sees; what a captured attention is recognised by.
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rope.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

bool is_padded(const Attrs& attrs) {
  return attrs.integer("padded", 0) != 0;
}

Types types(const Types& in, const Attrs& attrs) {
  bool padded = is_padded(attrs);
  expect_inputs("causal_mask", in, padded ? 2 : 1);
  expect_offset("causal_mask", in[0]);
  int64_t tokens = attrs.integer("tokens");
  int64_t capacity = attrs.integer("capacity");
  if (tokens < 0 || capacity < 0 || attrs.integer("window", 0) < 0) {
    fail(
        "causal_mask",
        "tokens, capacity and window must not be negative but got ",
        to_string(attrs),
        ".");
  }
  if (!padded) {
    return {{Dtype::boolean, {tokens, capacity}}};
  }
  expect_rank("causal_mask", "positions", in[1], 1);
  int64_t batch = in[1].shape[0];
  expect_positions("causal_mask", in[1], batch);
  return {{Dtype::boolean, {batch, 1, tokens, capacity}}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto last = mx::reshape(in[0], {1, 1}) +
      mx::expand_dims(mx::arange(static_cast<int>(attrs.integer("tokens"))), 1);
  auto key = mx::expand_dims(mx::arange(static_cast<int>(attrs.integer("capacity"))), 0);
  auto mask = key <= last;
  if (auto window = static_cast<int>(attrs.integer("window", 0))) {
    mask = mx::logical_and(mask, key > last - mx::array(window));
  }
  if (is_padded(attrs)) {
    auto padding = mx::reshape(in[0], {1, 1, 1, 1}) - mx::reshape(in[1], {-1, 1, 1, 1});
    mask = mx::logical_and(mask, padding <= key);
  }
  return {mask};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[window = attrs.integer("window", 0), padded = is_padded(attrs)](
              const Call& call, Member& member) {
    const Shape& shape = call.out[0].shape();
    const int64_t tokens = shape[-2];
    const int64_t capacity = shape[-1];
    const int64_t offset = *call.in[0].as<int32_t>();
    auto part = member.split(shape.rows());
    for (int64_t i = part.begin; i < part.end; ++i) {
      const int64_t t = i % tokens;
      bool* row = call.out[0].as<bool>() + i * capacity;
      const int64_t end = std::clamp<int64_t>(offset + t + 1, 0, capacity);
      int64_t begin = window ? offset + t + 1 - window : 0;
      if (padded) {
        begin = std::max(begin, offset - call.in[1].as<int32_t>()[i / tokens]);
      }
      begin = std::clamp<int64_t>(begin, 0, end);
      std::fill(row, row + begin, false);
      std::fill(row + begin, row + end, true);
      std::fill(row + end, row + capacity, false);
    }
  }};
}

cuda::Kernel cuda_kernel(const Types&, const Types& out, const Attrs& attrs, const cuda::Device&) {
  return cuda::causal_mask(out[0].shape, attrs.integer("window", 0), is_padded(attrs));
}

Case example(std::string name, int offset, int64_t tokens, int64_t capacity, int64_t window) {
  return {
      std::move(name),
      [offset](mx::Dtype) { return Arrays{mx::array(offset)}; },
      {{"tokens", tokens}, {"capacity", capacity}, {"window", window}}};
}

Case padded(std::string name, int offset, std::vector<int> positions, Attrs attrs) {
  auto inputs = [=](mx::Dtype) {
    auto batch = static_cast<int>(positions.size());
    return Arrays{mx::array(offset), mx::array(positions.data(), {batch}, mx::int32)};
  };
  return {std::move(name), inputs, attrs.set("padded", int64_t{1})};
}

} // namespace

ZMLX_OP(causal_mask)
    .args({"offset", "*rest"})
    .doc(
        "bool [tokens, capacity]: token t sees key j when j <= offset + t and, with a window, j > "
        "offset + t - window. offset: one int32; tokens, capacity, window (0: none): integers. "
        "padded=1: a second input positions (int32 [B]), and bool [B, 1, tokens, capacity], where "
        "sequence b also does not see its left padding, keys j < offset - positions[b].")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("decode", 7, 1, 33, 0),
        example("prompt", 0, 31, 31, 0),
        example("window", 5, 32, 64, 9),
        example("full", 40, 3, 33, 0),
        example("empty", 0, 0, 8, 0),
        padded("padded", 5, {5, 2, -1}, {{"tokens", int64_t{7}}, {"capacity", int64_t{33}}}),
        padded(
            "padded window",
            40,
            {38, 1},
            {{"tokens", int64_t{3}}, {"capacity", int64_t{64}}, {"window", int64_t{5}}}),
    });

} // namespace zmlx
