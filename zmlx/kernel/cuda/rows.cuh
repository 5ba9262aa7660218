// zmlx/kernel/cuda/rows.cuh: what goes over rows and elements: embedding, RMS norm, SwiGLU.
#pragma once

#include "zmlx/kernel/cuda/weights.cuh"

/// out [rows, width] = table[tokens]; blocks are rows, grid.y pieces of 1024 elements. There is nobody to tell about a token
/// beyond the table: its row is NaN.
template <typename T, typename W, typename Token>
__global__ void __launch_bounds__(256)
    embed(Pointer tokens, Pointer codes, Pointer scales, Pointer biases, Pointer out, int vocabulary, int width) {
  start_successor();
  wait_for_predecessor();
  const int64_t at = blockIdx.x;
  int64_t token = static_cast<int64_t>(tokens.as<Token>()[at]);
  token += token < 0 ? vocabulary : 0;
  const bool valid = token >= 0 && token < vocabulary;
  const Weight row = weight_row<T, W>(weight_at(codes, scales, biases), valid ? token : 0, width);
  for (int j = 0; j < 4; ++j) {
    const int i = static_cast<int>(blockIdx.y) * 1024 + j * 256 + static_cast<int>(threadIdx.x);
    if (i < width) {
      const float value = valid ? element_at<T, W>(row, i) : bits_to_float(0x7FC00000u);
      out.as<T>()[at * width + i] = from_float<T>(value);
    }
  }
}

/// A block a row.
template <typename T>
__global__ void __launch_bounds__(256) rms_norm(Pointer x, Pointer weight, Pointer out, float eps, int width) {
  start_successor();
  wait_for_predecessor();
  const T* row = x.as<T>() + static_cast<int64_t>(blockIdx.x) * width;
  T* to = out.as<T>() + static_cast<int64_t>(blockIdx.x) * width;
  __shared__ float partial[8];
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    const float v = to_float(row[i]);
    sum = fmaf(v, v, sum);
  }
  sum = warp_sum(sum);
  if (lane_index() == 0) {
    partial[warp_index()] = sum;
  }
  sync_block();
  float total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    total += partial[w];
  }
  const float inverse = inverse_sqrt(total / static_cast<float>(width) + eps);
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    const float normal = to_float(from_float<T>(to_float(row[i]) * inverse));
    to[i] = from_float<T>(normal * to_float(weight.as<T>()[i]));
  }
}

template <typename T, bool rounds>
__global__ void __launch_bounds__(256) swiglu(Pointer gate, Pointer up, Pointer out, int n) {
  start_successor();
  wait_for_predecessor();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * 1024 + threadIdx.x;
  for (int j = 0; j < 4; ++j) {
    const int64_t i = first + j * 256;
    if (i < n) {
      const float g = to_float(gate.as<T>()[i]);
      float y = 1 / (1 + expf(-g));
      y = g * (rounds ? to_float(from_float<T>(y)) : y);
      y = (rounds ? to_float(from_float<T>(y)) : y) * to_float(up.as<T>()[i]);
      out.as<T>()[i] = from_float<T>(y);
    }
  }
}
