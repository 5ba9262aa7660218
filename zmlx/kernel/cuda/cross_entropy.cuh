// zmlx/kernel/cuda/cross_entropy.cuh: cross entropy of softmax against class numbers, and its gradient; a block a row.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

/// Sum or maximum over a block of 256 threads, the same in all; `board` is of 8 floats.
template <bool maximum>
ZMLX_DEVICE float over_block(float x, float* board) {
  x = maximum ? warp_max(x) : warp_sum(x);
  sync_block(); // the last reading of the board is over
  if (lane_index() == 0) {
    board[warp_index()] = x;
  }
  sync_block();
  x = board[0];
  for (int w = 1; w < 8; ++w) {
    x = maximum ? fmaxf(x, board[w]) : x + board[w];
  }
  return x;
}

/// A row's e^x are total * e^base. NaN and infinities come to total.
struct RowMass {
  float base;
  float total;
};

template <typename T>
ZMLX_DEVICE RowMass mass_of_row(const T* x, int n, float* board) {
  float most = -infinity();
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
    most = fmaxf(most, to_float(x[i]));
  }
  most = over_block<true>(most, board);
  const float base = most == infinity() || most == -infinity() ? 0.0f : most;
  float total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
    total += expf(to_float(x[i]) - base);
  }
  return {base, over_block<false>(total, board)};
}

/// There is nobody to tell about a target that is no class: its loss is NaN.
template <typename T, typename Index>
__global__ void __launch_bounds__(256)
    cross_entropy(Pointer logits, Pointer targets, Pointer loss, Extent ignored, int n, float smoothing) {
  start_successor();
  wait_for_predecessor();
  __shared__ float board[8];
  const int64_t row = blockIdx.x;
  const T* x = logits.as<T>() + row * n;
  const int64_t target = static_cast<int64_t>(targets.as<Index>()[row]);
  const RowMass mass = mass_of_row(x, n, board);
  float sum = 0;
  if (smoothing > 0) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
      sum += to_float(x[i]);
    }
    sum = over_block<false>(sum, board);
  }
  if (threadIdx.x != 0) {
    return;
  }
  float y = 0;
  if (target != ignored.get()) {
    const bool is_class = target >= 0 && target < n;
    const float whole = logf(mass.total) + mass.base;
    y = is_class ? whole - to_float(x[target]) : not_a_number();
    if (smoothing > 0) {
      y = (1 - smoothing) * y + smoothing * (whole - sum / static_cast<float>(n));
    }
  }
  loss.as<float>()[row] = y;
}

/// A row whose target is no class is NaN.
template <typename T, typename Index>
__global__ void __launch_bounds__(256)
    cross_entropy_backward(Pointer logits, Pointer targets, Pointer dy, Pointer dx, Extent ignored, int n, float smoothing) {
  start_successor();
  wait_for_predecessor();
  __shared__ float board[8];
  const int64_t row = blockIdx.x;
  const T* x = logits.as<T>() + row * n;
  T* to = dx.as<T>() + row * n;
  const int64_t target = static_cast<int64_t>(targets.as<Index>()[row]);
  const bool counts = target != ignored.get();
  const RowMass mass = mass_of_row(x, n, board);
  const float slope = target >= 0 && target < n ? dy.as<float>()[row] : not_a_number();
  const float share = smoothing / static_cast<float>(n);
  for (int i = static_cast<int>(threadIdx.x); i < n; i += 256) {
    const float wanted = (i == target ? 1 - smoothing : 0.0f) + share;
    const float y = (expf(to_float(x[i]) - mass.base) / mass.total - wanted) * slope;
    to[i] = from_float<T>(counts ? y : 0.0f);
  }
}
