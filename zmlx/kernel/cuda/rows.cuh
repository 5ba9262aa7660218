// zmlx/kernel/cuda/rows.cuh: what goes over rows and elements: embedding, RMS norm, SwiGLU.
#pragma once

#include "zmlx/kernel/cuda/elements.cuh"
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

/// A block a row, which is read once while four packs a thread hold it.
template <typename T>
__global__ void __launch_bounds__(256) rms_norm(Pointer x, Pointer weight, Pointer out, float eps, int width) {
  start_successor();
  wait_for_predecessor();
  constexpr int size = Pack<T>::size;
  constexpr int most = 4;
  const T* row = x.as<T>() + static_cast<int64_t>(blockIdx.x) * width;
  T* to = out.as<T>() + static_cast<int64_t>(blockIdx.x) * width;
  const int begin = static_cast<int>(threadIdx.x) * size;
  const int apart = static_cast<int>(blockDim.x) * size;
  __shared__ float partial[8];
  float sum = 0;
  auto add = [&](const Pack<T>& pack) {
#pragma unroll
    for (int j = 0; j < size; ++j) {
      const float v = to_float(pack.v[j]);
      sum = fmaf(v, v, sum);
    }
  };
  Pack<T> held[most] = {};
#pragma unroll
  for (int k = 0; k < most; ++k) {
    const int i = begin + k * apart;
    if (i < width) {
      held[k] = load_pack(row + i, width - i);
    }
  }
#pragma unroll
  for (int k = 0; k < most; ++k) {
    add(held[k]);
  }
  for (int i = begin + most * apart; i < width; i += apart) {
    add(load_pack(row + i, width - i));
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
  auto write = [&](Pack<T> pack, int i) {
    const Pack<T> w = load_pack(weight.as<T>() + i, width - i);
#pragma unroll
    for (int j = 0; j < size; ++j) {
      const float normal = to_float(from_float<T>(to_float(pack.v[j]) * inverse));
      pack.v[j] = from_float<T>(normal * to_float(w.v[j]));
    }
    store_pack(pack, to + i, width - i);
  };
#pragma unroll
  for (int k = 0; k < most; ++k) {
    const int i = begin + k * apart;
    if (i < width) {
      write(held[k], i);
    }
  }
  for (int i = begin + most * apart; i < width; i += apart) {
    write(load_pack(row + i, width - i), i);
  }
}

template <typename T, bool rounds>
__global__ void __launch_bounds__(256) swiglu(Pointer gate, Pointer up, Pointer out, int n) {
  start_successor();
  wait_for_predecessor();
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * Pack<T>::size;
  if (first >= n) {
    return;
  }
  const int count = static_cast<int>(n - first < Pack<T>::size ? n - first : Pack<T>::size);
  Pack<T> a = load_pack(gate.as<T>() + first, count);
  const Pack<T> b = load_pack(up.as<T>() + first, count);
#pragma unroll
  for (int j = 0; j < Pack<T>::size; ++j) {
    const float g = to_float(a.v[j]);
    float y;
    if constexpr (rounds) {
      y = to_float(from_float<T>(1 / (1 + expf(-g))));
      y = to_float(from_float<T>(g * y));
    } else {
      y = g * divide(1, 1 + expf(-g));
    }
    a.v[j] = from_float<T>(y * to_float(b.v[j]));
  }
  store_pack(a, out.as<T>() + first, count);
}
