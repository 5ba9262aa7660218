// zmlx/kernel/cuda/moe.cuh: a mixture of experts for a few tokens: which experts, and their gated MLPs. A pair is a token and
// one of its experts.
#pragma once

#include "zmlx/kernel/cuda/linear.cuh"

/// Logits [tokens, experts] to the indices and weights [tokens, k] of the most likely experts, largest first, among equals the
/// lower index first; NaN counts as smallest. A warp a token; a lane has experts lane + 32 j.
template <typename T, int experts_a_lane>
__global__ void __launch_bounds__(128) choose_experts(
    Pointer logits, Pointer indices, Pointer weights, int tokens, int experts, int k, int normalize, int rounds) {
  start_successor();
  wait_for_predecessor();
  const int token = static_cast<int>(blockIdx.x) * 4 + warp_index();
  if (token >= tokens) {
    return;
  }
  const T* mine = logits.as<T>() + static_cast<int64_t>(token) * experts;
  float weight[experts_a_lane];
  float high = -infinity();
  for (int j = 0; j < experts_a_lane; ++j) {
    const int i = lane_index() + 32 * j;
    weight[j] = i < experts ? to_float(mine[i]) : -infinity();
    high = fmaxf(high, weight[j]);
  }
  high = warp_max(high);
  float sum = 0;
  for (int j = 0; j < experts_a_lane; ++j) {
    weight[j] = lane_index() + 32 * j < experts ? expf(weight[j] - high) : 0;
    sum += weight[j];
  }
  sum = warp_sum(sum);
  // Keys order the experts: NaN below every weight, what is chosen or not there below that.
  float key[experts_a_lane];
  for (int j = 0; j < experts_a_lane; ++j) {
    weight[j] = to_float(from_float<T>(weight[j] / sum));
    key[j] = lane_index() + 32 * j >= experts ? -2.0f : weight[j] == weight[j] ? weight[j] : -1.0f;
  }
  float divisor = 0;
  for (int n = 0; n < k; ++n) {
    float most = -3;
    int place = 0;
    for (int j = 0; j < experts_a_lane; ++j) {
      if (key[j] > most) {
        most = key[j];
        place = lane_index() + 32 * j;
      }
    }
    for (int i = 16; i > 0; i /= 2) {
      const float other = shuffle_xor(most, i);
      const int there = shuffle_xor(place, i);
      if (other > most || (other == most && there < place)) {
        most = other;
        place = there;
      }
    }
    float value = 0;
    for (int j = 0; j < experts_a_lane; ++j) {
      if (lane_index() + 32 * j == place) {
        value = weight[j];
        key[j] = -2;
      }
    }
    value = shuffle(value, place % 32);
    divisor += value;
    if (lane_index() == 0) {
      indices.as<uint32_t>()[static_cast<int64_t>(token) * k + n] = static_cast<uint32_t>(place);
      weights.as<T>()[static_cast<int64_t>(token) * k + n] = from_float<T>(value);
    }
  }
  if (normalize) {
    divisor = rounds ? to_float(from_float<T>(divisor)) : divisor;
    sync_warp();
    for (int n = lane_index(); n < k; n += 32) {
      T& to = weights.as<T>()[static_cast<int64_t>(token) * k + n];
      to = from_float<T>(to_float(to) / divisor);
    }
  }
}

/// hidden [pairs, n] = silu(gate_e(x)) * up_e(x), e a pair's expert; a block 16 elements of one pair.
template <typename T, typename W, int chunks>
__global__ void __launch_bounds__(256, chunks <= 2 ? 3 : 2) moe_gate_up(
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
  using D = Dot<T, W, 1, chunks>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int steps = (k + D::step - 1) / D::step;
  const int row = static_cast<int>(blockIdx.y) * 16;
  const int64_t pair = blockIdx.x;
  const Weight gates = weight_at(gate_codes, gate_scales, gate_biases);
  const Weight ups = weight_at(up_codes, up_scales, up_biases);
  // Not before the wait: moe_down counts on the router having ended when it starts.
  wait_for_predecessor();
  start_successor();
  const int64_t named = indices.as<uint32_t>()[pair];
  const bool valid = named < experts;
  const int64_t expert = valid ? named : 0;
  const Weight gate = weight_row<T, W>(gates, expert * n, k);
  const Weight up = weight_row<T, W>(ups, expert * n, k);
  typename D::Loaded loaded[2];
  D::load(loaded[0], gate, row, n, k, warp_index());
  D::load(loaded[1], up, row, n, k, warp_index());

  float* parts;
  const Staged<T> staged = staged_in<T, D, W>(dynamic_shared(), 1, k, &parts);
  stage_rows<T, D, W>(x.as<T>() + pair / chosen * k, nullptr, {}, 0, k, 1, 1, staged, nullptr, nullptr);
  sync_block();
  typename D::Sums total[2] = {};
#pragma unroll 1
  for (int at = warp_index(); at < steps; at += warps) {
    D::add(total[0], loaded[0], staged, at);
    D::add(total[1], loaded[1], staged, at);
    if (at + warps < steps) {
      D::load(loaded[0], gate, row, n, k, at + warps);
      D::load(loaded[1], up, row, n, k, at + warps);
    }
  }
  D::store(total[0], parts + warp_index() * 32);
  D::store(total[1], parts + warp_index() * 32 + 16);
  sync_block();
  const int i = static_cast<int>(threadIdx.x);
  if (i < 16 && row + i < n) {
    float y[2] = {0, 0};
    for (int w = 0; w < warps; ++w) {
      y[0] += parts[w * 32 + i];
      y[1] += parts[w * 32 + 16 + i];
    }
    const float value = valid ? linear::swiglu<T>(y[0], y[1], flags) : bits_to_float(0x7FC00000u);
    hidden.as<T>()[pair * n + row + i] = from_float<T>(value);
  }
}

/// One expert's y times its weight, rounded where separate ops would.
template <typename T>
ZMLX_DEVICE float weighted(float y, T weight, int flags) {
  return linear::rounded<T>(linear::rounded<T>(y, flags) * to_float(weight), flags);
}

/// out [tokens, n] = sum over a token's pairs of weight * down_e(hidden), and the residual; a block 16 elements of one token, a
/// warp an expert at a time. Reads indices and the residual before the
/// wait: moe_gate_up, its predecessor, has waited for all that came before it.
template <typename T, typename W, int chunks>
__global__ void __launch_bounds__(256, 2) moe_down(
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
  using D = Dot<T, W, 1, chunks>;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int steps = (k + D::step - 1) / D::step;
  const int row = static_cast<int>(blockIdx.y) * 16;
  const int64_t token = blockIdx.x;
  const uint32_t* mine = indices.as<uint32_t>() + token * chosen;
  const Weight all = weight_at(codes, scales, biases);
  const int items = (chosen - warp_index() + warps - 1) / warps * steps;
  auto load = [&](typename D::Loaded& to, int item) {
    if (item < items) {
      const int64_t named = mine[warp_index() + item / steps * warps];
      D::load(to, weight_row<T, W>(all, (named < experts ? named : 0) * n, k), row, n, k, item % steps);
    }
  };
  typename D::Loaded now;
  load(now, 0);
  const int i = static_cast<int>(threadIdx.x);
  const int64_t place = token * n + row + i;
  const bool is_mine = i < 16 && row + i < n; // the element that this thread finishes
  const float more = is_mine && flags & linear::has_residual ? to_float(residual.as<T>()[place]) : 0.0f;
  start_successor();
  wait_for_predecessor();

  float* parts;
  const Staged<T> staged = staged_in<T, D, W>(dynamic_shared(), chosen, k, &parts);
  stage_rows<T, D, W>(
      hidden.as<T>() + token * chosen * k, nullptr, {}, 0, k, chosen, chosen, staged, nullptr, nullptr);
  sync_block();
  typename D::Sums total = {};
#pragma unroll 1
  for (int item = 0; item < items; ++item) {
    const int j = warp_index() + item / steps * warps;
    Staged<T> its = staged;
    its.x += j * staged.stride;
    its.group_sums += j * staged.sum_stride;
    D::add(total, now, its, item % steps);
    load(now, item + 1);
    if (item % steps == steps - 1) {
      D::store(total, parts + j * 16);
      total = {};
    }
  }
  sync_block();
  if (is_mine) {
    float y = 0;
    for (int j = 0; j < chosen; ++j) {
      y += weighted(parts[j * 16 + i], weights.as<T>()[token * chosen + j], flags);
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
    y += weighted(warp_sum(sum), weights.as<T>()[pair], flags);
  }
  if (lane_index() == 0 && j < n) {
    const int64_t place = token * n + j;
    if (flags & linear::has_residual) {
      y = linear::rounded<T>(y, flags) + to_float(residual.as<T>()[place]);
    }
    out.as<T>()[place] = from_float<T>(y);
  }
}
