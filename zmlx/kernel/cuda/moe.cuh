// zmlx/kernel/cuda/moe.cuh: the chosen experts of a few tokens: their gated MLPs. A pair is a token and
// one of its experts.
#pragma once

#include "zmlx/kernel/cuda/choice.cuh"
#include "zmlx/kernel/cuda/row.cuh"

namespace moe {
inline constexpr int normalizes = 32; // of the flags besides those of linear: weights are divided by their sum
}

/// hidden [pairs, n] = silu(gate_e(x)) * up_e(x), e a pair's expert; a block 16 elements of one pair, its warps sharing k.
/// Experts are named by `routing`, or with experts_a_lane that is the router's logits, and each warp chooses from them.
template <typename T, typename W, int chunks, int slices, bool whole, int experts_a_lane>
__global__ void __launch_bounds__(256, 2) moe_gate_up(
    Pointer x,
    Pointer routing,
    Pointer gate_codes,
    Pointer gate_scales,
    Pointer gate_biases,
    Pointer up_codes,
    Pointer up_scales,
    Pointer up_biases,
    Pointer hidden,
    int k,
    int n,
    int chosen,
    int experts,
    int flags) {
  using Part = RowPart<T, W, chunks, slices, whole>;
  const int warp = warp_index();
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int row = static_cast<int>(blockIdx.y) * 16;
  const int pair = static_cast<int>(blockIdx.x);
  const Weight gates = weight_at(gate_codes, gate_scales, gate_biases);
  const Weight ups = weight_at(up_codes, up_scales, up_biases);
  // Not before the wait: moe_down counts on the router having ended when it starts.
  wait_for_predecessor();
  start_successor();
  const int64_t token = pair / chosen;
  const typename Part::Held held = Part::read(x.as<T>() + token * k, warp, warps, k);
  bool valid = true;
  int64_t expert = 0;
  if constexpr (experts_a_lane > 0) {
    Experts<T, experts_a_lane> left;
    left.read(routing.as<T>() + token * experts, experts);
#pragma unroll 1
    for (int place = pair % chosen; place >= 0; --place) {
      expert = left.take().expert;
    }
  } else {
    expert = routing.as<uint32_t>()[pair];
    valid = expert < experts;
    expert = valid ? expert : 0;
  }
  typename Part::Stream stream[2];
  stream[0].begin(weight_row<T, W>(gates, expert * n, k), row, n, k, warp, warps);
  stream[1].begin(weight_row<T, W>(ups, expert * n, k), row, n, k, warp, warps);

  float y[2];
  row_products<Part, 2, false, T>(y, stream, held, {}, 0, k, nullptr);
  const int i = static_cast<int>(threadIdx.x);
  if (i < 16 && row + i < n) {
    const float value = valid ? linear::swiglu<T>(y[0], y[1], flags) : bits_to_float(0x7FC00000u);
    hidden.as<T>()[static_cast<int64_t>(pair) * n + row + i] = from_float<T>(value);
  }
}

/// out [tokens, n] = sum over a token's pairs of weight * down_e(hidden), and the residual; a block 16 elements of one token, a
/// warp an expert at a time. Routing is as in moe_gate_up; `weights` are the experts' when they are named. Reads them and the
/// residual before the wait: moe_gate_up, its predecessor, has waited for all that came before it.
template <typename T, typename W, int chunks, int slices, bool whole, int experts_a_lane>
__global__ void __launch_bounds__(256, 2) moe_down(
    Pointer hidden,
    Pointer routing,
    Pointer weights,
    Pointer codes,
    Pointer scales,
    Pointer biases,
    Pointer residual,
    Pointer out,
    int k,
    int n,
    int chosen,
    int experts,
    int flags) {
  using Part = RowPart<T, W, chunks, slices, whole>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int row = static_cast<int>(blockIdx.y) * 16;
  const int64_t token = blockIdx.x;
  const Weight all = weight_at(codes, scales, biases);
  float* shares = reinterpret_cast<float*>(dynamic_shared()); // an expert
  auto* names = reinterpret_cast<uint32_t*>(shares + chosen); // an expert; each is one warp's
  float* sums = shares + 2 * chosen; // 16 an expert
  const int i = static_cast<int>(threadIdx.x);
  int j = warp_index(); // no more warps than experts
  if constexpr (experts_a_lane > 0) {
    const float divisor = choose<T, experts_a_lane>(
        routing.as<T>() + token * experts,
        experts,
        chosen,
        (flags & moe::normalizes) != 0,
        (flags & linear::rounds) != 0,
        [&](int place, int expert, float weight) {
          if (place % warps == j && lane_index() == 0) {
            names[place] = static_cast<uint32_t>(expert);
          }
          if (j == 0 && lane_index() == place % 32) {
            shares[place] = weight;
          }
        });
    for (int e = i; j == 0 && e < chosen; e += 32) {
      shares[e] = to_float(from_float<T>(shares[e] / divisor));
    }
    sync_warp();
  } else {
    for (int e = i; e < chosen; e += static_cast<int>(blockDim.x)) {
      shares[e] = to_float(weights.as<T>()[token * chosen + e]);
    }
  }
  auto weight_of = [&](int place) {
    const int64_t named = experts_a_lane > 0 ? names[place] : routing.as<uint32_t>()[token * chosen + place];
    return weight_row<T, W>(all, (named < experts ? named : 0) * n, k);
  };
  typename Part::Stream stream[1];
  stream[0].begin(weight_of(j), row, n, k, 0, 1);
  uint8_t* own = dynamic_shared() + (18 * chosen + 3) / 4 * 16 + j * Part::shared_bytes;
  const int64_t place = token * n + row + i;
  const bool is_mine = i < 16 && row + i < n; // the element that this thread finishes
  const float more = is_mine && flags & linear::has_residual ? to_float(residual.as<T>()[place]) : 0.0f;
  wait_for_predecessor();
  start_successor();

#pragma unroll 1
  for (; j < chosen; j += warps) {
    const Staged<T> staged = Part::stage(Part::read(hidden.as<T>() + (token * chosen + j) * k, 0, 1, k), own);
    typename Part::D::Sums total[1] = {};
    Part::multiply(total, stream, staged);
    if (j + warps < chosen) {
      stream[0].begin(weight_of(j + warps), row, n, k, 0, 1);
    }
    Part::D::store(total[0], sums + j * 16);
    sync_warp();
  }
  sync_block();
  if (is_mine) {
    float y = 0;
    for (int e = 0; e < chosen; ++e) {
      y += linear::rounded<T>(linear::rounded<T>(sums[e * 16 + i], flags) * shares[e], flags);
    }
    if (flags & linear::has_residual) {
      y = linear::rounded<T>(y, flags) + more;
    }
    out.as<T>()[place] = from_float<T>(y);
  }
}

/// The same two steps for weights and dtypes that tensor cores do not take: a warp an element.
template <typename T, typename W>
__global__ void __launch_bounds__(256) moe_gate_up_any(
    Pointer x,
    Pointer indices,
    Pointer gate_codes,
    Pointer gate_scales,
    Pointer gate_biases,
    Pointer up_codes,
    Pointer up_scales,
    Pointer up_biases,
    Pointer hidden,
    int k,
    int n,
    int chosen,
    int experts,
    int flags) {
  wait_for_predecessor();
  start_successor();
  const int64_t pair = blockIdx.x;
  const int j = static_cast<int>(blockIdx.y) * 8 + warp_index();
  const int64_t named = indices.as<uint32_t>()[pair];
  const bool valid = named < experts;
  const int64_t from = (valid ? named : 0) * n + (j < n ? j : n - 1);
  const Weight gate = weight_row<T, W>(weight_at(gate_codes, gate_scales, gate_biases), from, k);
  const Weight up = weight_row<T, W>(weight_at(up_codes, up_scales, up_biases), from, k);
  const T* mine = x.as<T>() + pair / chosen * k;
  float g = 0;
  float u = 0;
  for (int i = lane_index(); i < k; i += 32) {
    const float v = to_float(mine[i]);
    g = fmaf(v, element_at<T, W>(gate, i), g);
    u = fmaf(v, element_at<T, W>(up, i), u);
  }
  const float value = linear::swiglu<T>(warp_sum(g), warp_sum(u), flags);
  if (lane_index() == 0 && j < n) {
    hidden.as<T>()[pair * n + j] = from_float<T>(valid ? value : bits_to_float(0x7FC00000u));
  }
}

template <typename T, typename W>
__global__ void __launch_bounds__(256) moe_down_any(
    Pointer hidden,
    Pointer indices,
    Pointer weights,
    Pointer codes,
    Pointer scales,
    Pointer biases,
    Pointer residual,
    Pointer out,
    int k,
    int n,
    int chosen,
    int experts,
    int flags) {
  start_successor();
  wait_for_predecessor();
  const int64_t token = blockIdx.x;
  const int j = static_cast<int>(blockIdx.y) * 8 + warp_index();
  float y = 0;
  for (int e = 0; e < chosen; ++e) {
    const int64_t pair = token * chosen + e;
    const int64_t named = indices.as<uint32_t>()[pair];
    const int64_t from = (named < experts ? named : 0) * n + (j < n ? j : n - 1);
    const Weight down = weight_row<T, W>(weight_at(codes, scales, biases), from, k);
    const T* mine = hidden.as<T>() + pair * k;
    float sum = 0;
    for (int i = lane_index(); i < k; i += 32) {
      sum = fmaf(to_float(mine[i]), element_at<T, W>(down, i), sum);
    }
    y += linear::rounded<T>(linear::rounded<T>(warp_sum(sum), flags) * to_float(weights.as<T>()[pair]), flags);
  }
  if (lane_index() == 0 && j < n) {
    const int64_t place = token * n + j;
    if (flags & linear::has_residual) {
      y = linear::rounded<T>(y, flags) + to_float(residual.as<T>()[place]);
    }
    out.as<T>()[place] = from_float<T>(y);
  }
}
