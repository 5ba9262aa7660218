// zmlx/ops/dropout.cpp: elements dropped at random and the others scaled, in one pass; key and
// probability are inputs.
#include "zmlx/ops/dropout.h"

#include <limits>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "dropout";

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 3);
  expect_floating(name, "x", in[0]);
  expect_dtype(name, "key", in[1], Dtype::u32);
  expect_shape(name, "key", in[1], {2});
  expect_dtype(name, "p", in[2], Dtype::f32);
  if (in[2].shape.size() != 1) {
    fail(name, "p must be one number but got shape ", to_string(in[2].shape), ".");
  }
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  auto x = mx::astype(in[0], mx::float32);
  auto p = mx::reshape(in[2], mx::Shape{});
  auto bits = mx::random::bits(in[0].shape(), 4, in[1]);
  auto fraction =
      mx::astype(mx::right_shift(bits, mx::array(8u)), mx::float32) * mx::array(0x1p-24f);
  auto kept = mx::greater_equal(fraction, p);
  // With p = 1 nothing is kept, and nothing may be divided by zero for the gradient's sake.
  auto share = mx::where(mx::less(p, mx::array(1.0f)), mx::array(1.0f) - p, mx::array(1.0f));
  auto y = mx::where(kept, x / share, mx::array(0.0f));
  return {mx::astype(y, in[0].dtype())};
}

Arrays gradient(const Gradient& of) {
  auto &key = of.inputs[1], &p = of.inputs[2];
  return {of.apply(name, {of.cotangents[0], key, p}, {})[0], key, dropout_gradient(of, p)};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs&) {
  const int64_t n = in[0].shape.size();
  // The words' counters are 32 bits.
  if (n >= int64_t{1} << 32) {
    return {};
  }
  return {[n](const Call& call, Member& member) {
    const float p = *call.in[2].as<float>();
    if (!(p >= 0 && p <= 1)) {
      fail(name, "p must be from 0 to 1 but got ", p, ".");
    }
    const int64_t pairs = cpu::pair_count(n);
    const auto bytes = static_cast<int64_t>(size_of(call.in[0].dtype()));
    const bool past_cache = cpu::past_cache(call.out[0], 1024 * bytes) && n * bytes % 128 == 0;
    constexpr int64_t block = 64; // pairs, so that members share no line
    cpu::over_rows(member, (pairs + block - 1) / block, 2 * block * bytes, [&](Range part) {
      cpu::dropout_pairs(
          call.in[0].dtype(),
          call.in[0].data,
          call.in[1].as<uint32_t>(),
          p,
          n,
          part.begin * block,
          std::min(part.end * block, pairs),
          call.out[0].data,
          past_cache);
    });
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device&) {
  const int64_t n = in[0].shape.size();
  if (n == 0 || n > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  // Pairs of a block: 256 threads with 16 bytes of each half.
  const auto piece = static_cast<int64_t>(256 * 16 / size_of(in[0].dtype));
  cuda::Launch launch;
  launch.source = "elements.cuh";
  launch.kernel = "dropout<" + cuda::text_of(in[0].dtype) + ">";
  launch.grid[0] = static_cast<uint32_t>((cpu::pair_count(n) + piece - 1) / piece);
  launch.block[0] = 256;
  launch.arguments = {cuda::in(0), cuda::in(1), cuda::in(2), cuda::out(0), cuda::i32(n)};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape shape, float p) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        return Arrays{random_case(shape, dtype, 1), mx::random::key(7), mx::array(p, mx::float32)};
      },
      {}};
}

} // namespace

ZMLX_OP(dropout)
    .args({"x", "key", "p"})
    .doc(
        "x / (1 - p) where a random number is at least p, else 0 (Srivastava et al., 2014). key: "
        "uint32 [2], as mx.random.key makes it; p: one float32 from 0 to 1. The random words are "
        "mx::random::bits(x.shape(), key), their upper 24 bits taken as a fraction: the same mask on "
        "every device, and in the gradient.")
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("half", {37, 512}, 0.5f),
        example("few", {3, 31}, 0.1f),
        example("none", {2, 32}, 0.0f),
        example("all", {33}, 1.0f),
        example("one", {1}, 0.25f),
        example("odd", {7, 143}, 0.75f),
        example("empty", {0, 8}, 0.5f),
    });

} // namespace zmlx
