// zmlx/ops/causal_mask.cpp: which keys each token sees; what a captured attention is recognised by.
#include "mlx/ops.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

Types types(const Types& in, const Attrs& attrs) {
  expect_inputs("causal_mask", in, 1);
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
  return {{Dtype::boolean, {tokens, capacity}}};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto last = mx::reshape(in[0], {1, 1}) +
      mx::expand_dims(mx::arange(static_cast<int>(attrs.integer("tokens"))), 1);
  auto key = mx::expand_dims(mx::arange(static_cast<int>(attrs.integer("capacity"))), 0);
  auto mask = key <= last;
  if (auto window = static_cast<int>(attrs.integer("window", 0))) {
    mask = mx::logical_and(mask, key > last - mx::array(window));
  }
  return {mask};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  return {[window = attrs.integer("window", 0)](const Call& call, Member& member) {
    const int64_t capacity = call.out[0].shape()[1];
    const int64_t offset = *call.in[0].as<int32_t>();
    auto part = member.split(call.out[0].shape()[0]);
    for (int64_t t = part.begin; t < part.end; ++t) {
      bool* row = call.out[0].as<bool>() + t * capacity;
      const int64_t end = std::clamp<int64_t>(offset + t + 1, 0, capacity);
      const int64_t begin = window ? std::clamp<int64_t>(offset + t + 1 - window, 0, end) : 0;
      std::fill(row, row + begin, false);
      std::fill(row + begin, row + end, true);
      std::fill(row + end, row + capacity, false);
    }
  }};
}

Case example(std::string name, int offset, int64_t tokens, int64_t capacity, int64_t window) {
  return {
      std::move(name),
      [offset](mx::Dtype) { return Arrays{mx::array(offset)}; },
      {{"tokens", tokens}, {"capacity", capacity}, {"window", window}}};
}

} // namespace

ZMLX_OP(causal_mask)
    .args({"offset"})
    .doc(
        "bool [tokens, capacity]: token t sees key j when j <= offset + t and, with a window, j > "
        "offset + t - window. offset: one int32; tokens, capacity, window (0: none): integers.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cases({
        example("decode", 7, 1, 33, 0),
        example("prompt", 0, 31, 31, 0),
        example("window", 5, 32, 64, 9),
        example("full", 40, 3, 33, 0),
        example("empty", 0, 0, 8, 0),
    });

} // namespace zmlx
