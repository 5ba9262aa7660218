// zmlx/ops/conv1d_silu.cpp: causal convolution of each channel over time, with its state, and SiLU.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/conv1d_silu.cpp"
#include <algorithm>

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_CONV1D_SILU_CPP_
#define ZMLX_OPS_CONV1D_SILU_CPP_
namespace zmlx {
namespace {

/// A unit of work: some channels of some tokens of one sequence.
struct CausalConv {
  static constexpr int64_t max_taps = 16;
  static constexpr int64_t channels_each = 128;
  static constexpr int64_t tokens_each = 32;

  int64_t batch;
  int64_t tokens;
  int64_t channels;
  int64_t taps;

  int64_t channel_blocks() const {
    return (channels + channels_each - 1) / channels_each;
  }
  int64_t token_blocks() const {
    return (tokens + tokens_each - 1) / tokens_each;
  }
};

/// Row `t` of state and x after one another; t counts from the state's first row.
template <typename T>
const T* row_at(const CausalConv& op, const Call& call, int64_t b, int64_t t) {
  const int64_t kept = op.taps - 1;
  return t < kept ? call.in[2].as<T>() + (b * kept + t) * op.channels
                  : call.in[0].as<T>() + (b * op.tokens + t - kept) * op.channels;
}

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

template <typename T>
void conv1d_silu_units(const CausalConv& op, const Call& call, Range units) {
  constexpr int64_t each = CausalConv::channels_each;
  HWY_ALIGN float weight[CausalConv::max_taps * each]; // [tap][channel]
  HWY_ALIGN float row[CausalConv::max_taps + hn::MaxLanes(F32())];
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t t0 = unit % op.token_blocks() * CausalConv::tokens_each;
    const int64_t block = unit / op.token_blocks();
    const int64_t b = block / op.channel_blocks();
    const int64_t c0 = block % op.channel_blocks() * each;
    const int64_t count = std::min(each, op.channels - c0);
    for (int64_t c = 0; c < count; ++c) {
      const T* taps = call.in[1].as<T>() + (c0 + c) * op.taps;
      for (int64_t k = 0; k < op.taps; k += static_cast<int64_t>(lanes())) {
        store(load_some(taps + k, static_cast<size_t>(op.taps - k)), row + k);
      }
      for (int64_t k = 0; k < op.taps; ++k) {
        weight[k * each + c] = row[k];
      }
    }
    const int64_t t1 = std::min(op.tokens, t0 + CausalConv::tokens_each);
    for (int64_t t = t0; t < t1; ++t) {
      const T* rows[CausalConv::max_taps];
      for (int64_t k = 0; k < op.taps; ++k) {
        rows[k] = row_at<T>(op, call, b, t + k) + c0;
      }
      T* out = call.out[0].as<T>() + (b * op.tokens + t) * op.channels + c0;
      for (int64_t c = 0; c < count; c += static_cast<int64_t>(lanes())) {
        const size_t left = static_cast<size_t>(count - c);
        Floats y = hn::Zero(F32());
        for (int64_t k = 0; k < op.taps; ++k) {
          y = hn::MulAdd(load_some(rows[k] + c, left), load_some(weight + k * each + c, left), y);
        }
        store_some(hn::Mul(y, sigmoid(y)), out + c, left);
      }
    }
  }
}

void conv1d_silu_kernel(const CausalConv& op, const Call& call, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return conv1d_silu_units<hwy::float16_t>(op, call, units);
    case Dtype::bf16:
      return conv1d_silu_units<hwy::bfloat16_t>(op, call, units);
    default:
      return conv1d_silu_units<float>(op, call, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {

HWY_EXPORT(conv1d_silu_kernel);

namespace {

constexpr const char* name = "conv1d_silu";

/// Needs inputs of the right ranks.
CausalConv settings(const Types& in) {
  const Shape& x = in[0].shape;
  return {x[0], x[1], x[2], in[1].shape[1]};
}

Types types(const Types& in, const Attrs&) {
  if (in.size() != 3 && in.size() != 4) {
    fail(name, "expected 3 inputs, or 4 with lengths, but got ", in.size(), ".");
  }
  expect_floating(name, "x", in[0]);
  expect_rank(name, "x", in[0], 3);
  expect_rank(name, "weight", in[1], 2);
  expect_dtype(name, "weight", in[1], in[0].dtype);
  expect_dtype(name, "state", in[2], in[0].dtype);
  const auto op = settings(in);
  if (op.taps < 1) {
    fail(name, "weight must have at least one tap but got ", to_string(in[1]), ".");
  }
  expect_shape(name, "weight", in[1], {op.channels, op.taps});
  expect_shape(name, "state", in[2], {op.batch, op.taps - 1, op.channels});
  if (in.size() == 4) {
    expect_dtype(name, "lengths", in[3], Dtype::i32);
    expect_shape(name, "lengths", in[3], {op.batch});
  }
  return {in[0], in[2]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  const int tokens = in[0].shape(1);
  const int taps = in[1].shape(1);
  auto rows = mx::concatenate({in[2], in[0]}, 1);
  auto wide = mx::astype(rows, mx::float32);
  auto weight = mx::astype(in[1], mx::float32);
  auto y = mx::zeros(in[0].shape(), mx::float32);
  for (int k = 0; k < taps; ++k) {
    auto shifted = mx::slice(wide, {0, k, 0}, {wide.shape(0), k + tokens, wide.shape(2)});
    y = y + shifted * mx::take(weight, k, 1);
  }
  auto ends = in.size() == 4 ? mx::clip(in[3], mx::array(0), mx::array(tokens))
                             : mx::full({in[0].shape(0)}, tokens, mx::int32);
  auto places = mx::expand_dims(mx::expand_dims(ends, 1) + mx::arange(taps - 1), -1);
  return {mx::astype(y * mx::sigmoid(y), in[0].dtype()), mx::take_along_axis(rows, places, 1)};
}

/// The last rows of each sequence, `lengths` long at most.
void keep_rows(const CausalConv& op, const Call& call, Member& member) {
  const auto size = static_cast<int64_t>(size_of(call.in[0].dtype()));
  const int64_t kept = op.taps - 1;
  const int64_t row = op.channels * size;
  const Range part = member.split(op.batch * kept);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t b = i / kept;
    int64_t t = op.tokens;
    if (call.in.size() == 4) {
      t = std::clamp<int64_t>(call.in[3].as<int32_t>()[b], 0, op.tokens);
    }
    t += i % kept;
    const std::byte* from = t < kept
        ? call.in[2].as<std::byte>() + (b * kept + t) * row
        : call.in[0].as<std::byte>() + (b * op.tokens + t - kept) * row;
    std::memcpy(call.out[1].as<std::byte>() + i * row, from, static_cast<size_t>(row));
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs&) {
  const auto op = settings(in);
  if (op.taps > CausalConv::max_taps) {
    return {};
  }
  return {[op](const Call& call, Member& member) {
    HWY_DYNAMIC_DISPATCH(conv1d_silu_kernel)
    (op, call, member.split(op.batch * op.channel_blocks() * op.token_blocks()));
    keep_rows(op, call, member);
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device&) {
  const auto op = settings(in);
  const int64_t kept = op.taps - 1;
  const auto dtype = cuda::text_of(in[0].dtype);
  if (!cuda::countable({op.batch, op.channels, op.tokens + op.taps}) ||
      !cuda::countable({(in[0].shape.size() + in[2].shape.size()) / 256 + 1})) {
    return {};
  }
  cuda::Kernel kernel;
  if (op.tokens) {
    auto launch = cuda::thread_a_unit(
        "convolution.cuh", "conv1d_silu<" + dtype + ">", op.batch * op.tokens * op.channels);
    launch.arguments = {
        cuda::in(0),
        cuda::in(1),
        cuda::in(2),
        cuda::out(0),
        cuda::i32(op.batch),
        cuda::i32(op.tokens),
        cuda::i32(op.channels),
        cuda::i32(op.taps)};
    kernel.launches.push_back(std::move(launch));
  }
  if (kept) {
    const bool own_lengths = in.size() == 4;
    auto launch = cuda::thread_a_unit(
        "convolution.cuh",
        "conv1d_state<" + dtype + ", " + cuda::text_of(own_lengths) + ">",
        op.batch * kept * op.channels);
    launch.arguments = {
        cuda::in(0),
        cuda::in(2),
        cuda::in(own_lengths ? 3 : 2),
        cuda::out(1),
        cuda::i32(op.batch),
        cuda::i32(op.tokens),
        cuda::i32(op.channels),
        cuda::i32(kept)};
    kernel.launches.push_back(std::move(launch));
  }
  return kernel;
}

Case example(std::string label, mx::Shape shape, int taps, std::vector<int> lengths = {}) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in = {
            random_case(shape, dtype, 1),
            random_case({shape[2], taps}, dtype, 2),
            random_case({shape[0], taps - 1, shape[2]}, dtype, 3)};
        if (!lengths.empty()) {
          in.push_back(mx::array(lengths.data(), {shape[0]}, mx::int32));
        }
        return in;
      },
      {}};
}

} // namespace

ZMLX_OP(conv1d_silu)
    .args({"x", "weight", "state", "*lengths"})
    .doc(
        "silu of the causal convolution of each channel: x [B, T, C] after the state [B, K - 1, C] of "
        "earlier tokens, weight [C, K], in float32. Gives [B, T, C] and the new state: the last K - 1 "
        "rows, or those that end each sequence where lengths (int32 [B]) says how many tokens count.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("decode", {2, 1, 512}, 4),
        example("prompt", {2, 37, 129}, 4),
        example("lengths", {3, 5, 33}, 4, {5, 0, 2}),
        example("two taps", {1, 31, 32}, 2),
        example("one tap", {2, 3, 31}, 1),
        example("one", {1, 1, 1}, 4),
        example("empty", {2, 0, 8}, 4),
    });

} // namespace zmlx
#endif
