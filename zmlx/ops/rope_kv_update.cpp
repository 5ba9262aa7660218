// zmlx/ops/rope_kv_update.cpp: RMS norm and rotary embedding of q and k, and k, v written to their
// buffers.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/rope_kv_update.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/rope-inl.h"
#include "zmlx/ops/op.h"

#ifndef ZMLX_OPS_ROPE_KV_UPDATE_CPP_
#define ZMLX_OPS_ROPE_KV_UPDATE_CPP_
namespace zmlx {
namespace {

/// Widest head that the kernel holds in a buffer of its own.
constexpr int64_t max_head = 512;

struct RopeKvUpdate {
  int64_t q_heads;
  int64_t kv_heads;
  bool norm;
  bool padded;
  float eps;
  cpu::Rope rope;
};

} // namespace
} // namespace zmlx
#endif

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// One head's row x [n], normalised when there is a weight, rotated, to `out`.
template <typename T>
void rope_row(
    const T* x,
    const T* weight,
    size_t n,
    const RopeKvUpdate& op,
    const Rotation& rotation,
    T* out) {
  HWY_ALIGN float row[max_head];
  if (weight) {
    auto inverse = hn::Set(F32(), inverse_rms(x, n, op.eps));
    for (size_t i = 0; i < n; i += lanes()) {
      auto normal = hn::Mul(load_some(x + i, n - i), inverse);
      if (op.rope.exact) {
        normal = round_to<T>(normal);
      }
      normal = hn::Mul(normal, load_some(weight + i, n - i));
      if (op.rope.exact) {
        normal = round_to<T>(normal);
      }
      store_some(normal, row + i, n - i);
    }
  } else {
    for (size_t i = 0; i < n; i += lanes()) {
      store_some(load_some(x + i, n - i), row + i, n - i);
    }
  }
  rotate<T>(rotation, op.rope, row);
  for (size_t i = 0; i < n; i += lanes()) {
    store_some(load_some(row + i, n - i), out + i, n - i);
  }
}

/// Units are (token, head): a token's q heads, then its k heads, then its v heads.
template <typename T>
void rope_kv_update_units(const Call& call, const RopeKvUpdate& op, Range units) {
  const size_t norms = op.norm ? 2 : 0;
  const T* q = call.in[0].as<T>();
  const T* k = call.in[1].as<T>();
  const T* v = call.in[2].as<T>();
  const T* q_norm = op.norm ? call.in[3].as<T>() : nullptr;
  const T* k_norm = op.norm ? call.in[4].as<T>() : nullptr;
  const float* inv_freq = call.in[3 + norms].as<float>();
  const int64_t offset = *call.in[4 + norms].as<int32_t>();
  const int32_t* positions = op.padded ? call.in[5 + norms].as<int32_t>() : nullptr;
  T* out = call.out[0].as<T>();
  T* keys = call.out[1].as<T>();
  T* values = call.out[2].as<T>();

  const int64_t tokens = call.in[0].shape()[1];
  const int64_t capacity = call.out[1].shape()[2];
  const int64_t width = call.out[1].shape()[3];
  const int64_t value_width = call.out[2].shape()[3];
  const int64_t heads = op.q_heads + 2 * op.kv_heads;
  Rotation rotation;
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const int64_t token = unit / heads;
    const int64_t batch = token / tokens;
    const int64_t t = token % tokens;
    int64_t head = unit % heads;
    if (head >= op.q_heads + op.kv_heads) {
      head -= op.q_heads + op.kv_heads;
      const T* from = v + (token * op.kv_heads + head) * value_width;
      const int64_t row = (batch * op.kv_heads + head) * capacity + offset + t;
      std::copy(from, from + value_width, values + row * value_width);
      continue;
    }
    turn_to<T>(rotation, (positions ? positions[batch] : offset) + t, op.rope, inv_freq);
    const size_t n = static_cast<size_t>(width);
    if (head < op.q_heads) {
      const int64_t at = (token * op.q_heads + head) * width;
      rope_row(q + at, q_norm, n, op, rotation, out + at);
    } else {
      head -= op.q_heads;
      const int64_t row = (batch * op.kv_heads + head) * capacity + offset + t;
      const T* from = k + (token * op.kv_heads + head) * width;
      rope_row(from, k_norm, n, op, rotation, keys + row * width);
    }
  }
}

void rope_kv_update_kernel(const Call& call, const RopeKvUpdate& op, Range units) {
  switch (call.in[0].dtype()) {
    case Dtype::f16:
      return rope_kv_update_units<hwy::float16_t>(call, op, units);
    case Dtype::bf16:
      return rope_kv_update_units<hwy::bfloat16_t>(call, op, units);
    default:
      return rope_kv_update_units<float>(call, op, units);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rope.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/rope.h"

namespace zmlx {

HWY_EXPORT(rope_kv_update_kernel);

namespace {

constexpr const char* name = "rope_kv_update";

RopeKvUpdate settings(const Attrs& attrs) {
  return {
      attrs.integer("q_heads"),
      attrs.integer("kv_heads"),
      attrs.integer("norm", 0) != 0,
      attrs.integer("padded", 0) != 0,
      static_cast<float>(attrs.real("eps", 0)),
      rope_settings(attrs)};
}

/// Place of the inverse frequencies among the inputs; the offset follows.
size_t inv_freq_at(const RopeKvUpdate& op) {
  return op.norm ? 5 : 3;
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, inv_freq_at(op) + (op.padded ? 5 : 4));
  if (op.q_heads <= 0 || op.kv_heads <= 0 || op.q_heads % op.kv_heads != 0) {
    fail(
        name,
        "q_heads must be a multiple of kv_heads but got ",
        op.q_heads,
        " and ",
        op.kv_heads,
        ".");
  }
  auto& q = in[0];
  auto& keys = in[in.size() - 2];
  auto& values = in[in.size() - 1];
  expect_floating(name, "q", q);
  expect_rank(name, "q", q, 3);
  expect_rank(name, "keys", keys, 4);
  expect_rank(name, "values", values, 4);
  for (size_t i : {size_t{1}, size_t{2}, in.size() - 2, in.size() - 1}) {
    expect_dtype(
        name,
        i == 1                   ? "k"
            : i == 2             ? "v"
            : i + 2 == in.size() ? "keys"
                                 : "values",
        in[i],
        q.dtype);
  }
  int64_t batch = q.shape[0];
  int64_t tokens = q.shape[1];
  int64_t width = keys.shape[3];
  int64_t value_width = values.shape[3];
  expect_shape(name, "q", q, {batch, tokens, op.q_heads * width});
  expect_shape(name, "k", in[1], {batch, tokens, op.kv_heads * width});
  expect_shape(name, "v", in[2], {batch, tokens, op.kv_heads * value_width});
  expect_shape(name, "keys", keys, {batch, op.kv_heads, keys.shape[2], width});
  expect_shape(name, "values", values, {batch, op.kv_heads, keys.shape[2], value_width});
  if (op.norm) {
    expect_dtype(name, "q_norm", in[3], q.dtype);
    expect_shape(name, "q_norm", in[3], {width});
    expect_dtype(name, "k_norm", in[4], q.dtype);
    expect_shape(name, "k_norm", in[4], {width});
  }
  expect_rope(name, in[inv_freq_at(op)], op.rope.dims, width);
  expect_offset(name, in[inv_freq_at(op) + 1]);
  if (op.padded) {
    expect_positions(name, in[inv_freq_at(op) + 2], batch);
  }
  return {{q.dtype, {batch, tokens, op.q_heads, width}}, keys, values};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto& inv_freq = in[inv_freq_at(op)];
  auto& offset = in[inv_freq_at(op) + 1];
  auto& position = in[inv_freq_at(op) + (op.padded ? 2 : 1)];
  auto heads = [&](const mx::array& x, int64_t count) {
    return mx::unflatten(x, 2, {static_cast<int>(count), x.shape(2) / static_cast<int>(count)});
  };
  auto turned = [&](mx::array x, const mx::array* weight) {
    if (weight) {
      x = mx::fast::rms_norm(x, *weight, op.eps);
    }
    return rope_reference(mx::swapaxes(x, 1, 2), position, inv_freq, op.rope);
  };
  auto q = turned(heads(in[0], op.q_heads), op.norm ? &in[3] : nullptr);
  auto k = turned(heads(in[1], op.kv_heads), op.norm ? &in[4] : nullptr);
  auto v = mx::swapaxes(heads(in[2], op.kv_heads), 1, 2);
  auto start = mx::reshape(offset, {1});
  return {
      mx::swapaxes(q, 1, 2),
      mx::slice_update(in[in.size() - 2], k, start, {2}),
      mx::slice_update(in[in.size() - 1], v, start, {2})};
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  if (in[in.size() - 2].shape[3] > max_head || op.rope.dims > cpu::max_rope_dims) {
    return {};
  }
  return {[op](const Call& call, Member& member) {
    const Shape& q = call.in[0].shape();
    const int64_t offset = *call.in[inv_freq_at(op) + 1].as<int32_t>();
    expect_room(name, offset, q[1], call.out[1].shape()[2]);
    auto units = member.split(q[0] * q[1] * (op.q_heads + 2 * op.kv_heads));
    HWY_DYNAMIC_DISPATCH(rope_kv_update_kernel)(call, op, units);
  }};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device&) {
  auto op = settings(attrs);
  return cuda::rope_kv_update(
      {in[0].dtype,
       in[0].shape[0],
       in[0].shape[1],
       op.q_heads,
       op.kv_heads,
       out[1].shape[3],
       out[2].shape[3],
       op.norm,
       op.padded,
       op.eps,
       op.rope,
       static_cast<int>(inv_freq_at(op))});
}

/// Only the new rows of the buffers are written; the rest stays where it is.
size_t traffic(const Types& in, const Types&, const Attrs&) {
  return 2 * (in[0].bytes() + in[1].bytes() + in[2].bytes());
}

struct Heads {
  int q = 8;
  int kv = 2;
  int width = 64;
  int value_width = 64;
};

Case example(
    std::string label,
    int batch,
    int tokens,
    int capacity,
    int offset,
    Heads h,
    Attrs attrs) {
  bool norm = attrs.integer("norm", 0) != 0;
  int dims = static_cast<int>(attrs.integer("dims", h.width));
  attrs.set("dims", int64_t{dims}).set("q_heads", int64_t{h.q}).set("kv_heads", int64_t{h.kv});
  attrs.set("eps", 1e-6);
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in = {
            random_case({batch, tokens, h.q * h.width}, dtype, 1),
            random_case({batch, tokens, h.kv * h.width}, dtype, 2),
            random_case({batch, tokens, h.kv * h.value_width}, dtype, 3)};
        if (norm) {
          in.push_back(random_case({h.width}, dtype, 4));
          in.push_back(random_case({h.width}, dtype, 5));
        }
        in.push_back(mx::exp(
            mx::arange(0, -dims / 2, -1, mx::float32) * (27.6f / static_cast<float>(dims))));
        in.push_back(mx::array(offset));
        if (attrs.integer("padded", 0)) {
          in.push_back(mx::array(offset) - mx::arange(batch) * mx::array(3));
        }
        in.push_back(random_case({batch, h.kv, capacity, h.width}, dtype, 6));
        in.push_back(random_case({batch, h.kv, capacity, h.value_width}, dtype, 7));
        return in;
      },
      attrs};
}

} // namespace

ZMLX_OP(rope_kv_update)
    .args({"q", "k", "v", "*rest"})
    .doc(
        "q [B, T, Hq * D] and k [B, T, Hkv * D], each head RMS-normalised when norm=1 (inputs q_norm, "
        "k_norm [D]; eps), then rotated as in rope (inv_freq float32 [dims / 2]; offset int32; dims, "
        "traditional, scale). Gives q' [B, T, Hq, D], and keys [B, Hkv, C, D] and values [B, Hkv, C, "
        "Dv] with rows [offset, offset + T) replaced by k' and v [B, T, Hkv * Dv], in place when "
        "nothing else holds them. padded=1: sequence b is rotated from position positions[b] (int32 "
        "[B]) on instead. Inputs: q, k, v, [q_norm, k_norm], inv_freq, offset, [positions], keys, "
        "values. "
        "exact=1 also rounds to the dtype after each step of the unfused graph.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .traffic(traffic)
    .in_place(1, -2)
    .in_place(2, -1)
    .cases({
        example("decode", 1, 1, 256, 200, {32, 4, 128, 128}, {{"norm", int64_t{1}}}),
        example("prompt", 2, 37, 64, 5, {}, {{"norm", int64_t{1}}}),
        example("no norm", 1, 3, 16, 0, {}, {{"norm", int64_t{0}}}),
        example("part", 1, 5, 9, 4, {6, 3, 80, 33}, {{"dims", int64_t{34}}, {"scale", 0.5}}),
        example("traditional", 1, 33, 33, 0, {2, 1, 32, 32}, {{"traditional", int64_t{1}}}),
        example(
            "exact",
            1,
            31,
            32,
            1,
            {4, 4, 64, 64},
            {{"norm", int64_t{1}}, {"exact", int64_t{1}}}),
        example("empty", 1, 0, 8, 8, {}, {{"norm", int64_t{1}}}),
        example("padded", 3, 5, 16, 4, {}, {{"norm", int64_t{1}}, {"padded", int64_t{1}}}),
        example("padded decode", 4, 1, 64, 9, {}, {{"norm", int64_t{0}}, {"padded", int64_t{1}}}),
        example("padded alone", 1, 1, 8, 0, {}, {{"norm", int64_t{0}}, {"padded", int64_t{1}}}),
    });

} // namespace zmlx
#endif
