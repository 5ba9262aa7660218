// zmlx/ops/swiglu.cpp: silu(gate) * up in one pass over memory.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/swiglu.cpp"
#include <cmath>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

template <typename T>
void swiglu_part(const Call& call, bool exact, Range part) {
  const T* gate = call.in[0].as<T>();
  const T* up = call.in[1].as<T>();
  T* out = call.out[0].as<T>();
  for (int64_t i = part.begin; i < part.end; i += static_cast<int64_t>(lanes())) {
    const size_t left = static_cast<size_t>(part.end - i);
    auto g = load_some(gate + i, left);
    auto s = sigmoid(g);
    if (exact) {
      s = round_to<T>(hn::Mul(g, round_to<T>(s)));
    } else {
      s = hn::Mul(g, s);
    }
    store_some(hn::Mul(s, load_some(up + i, left)), out + i, left);
  }
}

void swiglu_kernel(const Call& call, bool exact, Range part) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return swiglu_part<hwy::float16_t>(call, exact, part);
    case Dtype::bf16:
      return swiglu_part<hwy::bfloat16_t>(call, exact, part);
    default:
      return swiglu_part<float>(call, exact, part);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/formula.h"

namespace zmlx {

HWY_EXPORT(swiglu_kernel);

namespace {

Types types(const Types& in, const Attrs&) {
  expect_inputs("swiglu", in, 2);
  expect_floating("swiglu", "gate", in[0]);
  expect_dtype("swiglu", "up", in[1], in[0].dtype);
  expect_shape("swiglu", "up", in[1], in[0].shape);
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  return {in[0] * mx::sigmoid(in[0]) * in[1]};
}

CpuKernel kernel(const Types&, const Types&, const Attrs& attrs) {
  bool exact = attrs.integer("exact", 0) != 0;
  return {[exact](const Call& call, Member& member) {
    auto part = member.split(call.out[0].shape().size(), 64);
    HWY_DYNAMIC_DISPATCH(swiglu_kernel)(call, exact, part);
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  const int64_t n = in[0].shape.size();
  if (n == 0 || n > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  cuda::Launch launch;
  launch.source = "rows.cuh";
  launch.kernel =
      "swiglu<" + cuda::text_of(in[0].dtype) + (attrs.integer("exact", 0) ? ", true>" : ", false>");
  const int64_t a_block = 256 * static_cast<int64_t>(16 / size_of(in[0].dtype));
  launch.grid[0] = static_cast<uint32_t>((n + a_block - 1) / a_block);
  launch.block[0] = 256;
  launch.arguments = {cuda::in(0), cuda::in(1), cuda::out(0), cuda::i32(n)};
  return {{launch}, 0};
}

Formula formula(const Types&, const Attrs& attrs) {
  return {attrs.integer("exact", 0) ? "" : "silu(gate) * up", {{"gate", 0}, {"up", 1}}};
}

Case example(std::string name, mx::Shape shape, Attrs attrs = {}) {
  return {
      std::move(name),
      [shape](mx::Dtype dtype) {
        return Arrays{random_case(shape, dtype, 1, 4), random_case(shape, dtype, 2)};
      },
      std::move(attrs)};
}

} // namespace

ZMLX_OP(swiglu)
    .args({"gate", "up"})
    .doc(
        "gate * sigmoid(gate) * up for arrays of one shape and dtype (Shazeer, 2020). exact=1 also "
        "rounds the sigmoid and its product with gate to the dtype.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(FormulaKernel{"swiglu", formula, cuda_kernel})
    .cases({
        example("decode", {1, 14336}),
        example("prompt", {37, 512}),
        example("exact", {37, 32}, {{"exact", int64_t{1}}}),
        example("tail", {3, 31}),
        example("over", {33}),
        example("one", {}),
        example("empty", {0, 8}),
    });

} // namespace zmlx
#endif
