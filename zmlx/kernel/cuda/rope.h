// zmlx/kernel/cuda/rope.h: launches for rotary embeddings, the KV cache's update and the causal
// mask.
#pragma once

#include "zmlx/kernel/cpu/rope.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/tensor.h"

namespace zmlx::cuda {

/// x [B, H, T, D]; inputs x, offset, inv_freq.
Kernel rope(Dtype dtype, const Shape& x, bool own_offsets, const cpu::Rope& rope);

/// Inputs and outputs as of op rope_kv_update; `frequencies` is where inv_freq is.
struct RopeKvUpdate {
  Dtype dtype;
  int64_t batch;
  int64_t tokens;
  int64_t q_heads;
  int64_t kv_heads;
  int64_t width;
  int64_t value_width;
  bool norm;
  bool padded;
  float eps;
  cpu::Rope rope;
  int frequencies;
};
Kernel rope_kv_update(const RopeKvUpdate& op);

/// Inputs buffer, x, offset.
Kernel kv_update(const Shape& x, size_t element_bytes);

/// Inputs offset, [positions].
Kernel causal_mask(const Shape& out, int64_t window, bool padded);

} // namespace zmlx::cuda
