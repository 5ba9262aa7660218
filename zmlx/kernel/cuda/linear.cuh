// zmlx/kernel/cuda/linear.cuh: linear layers of a few rows: decode.
#pragma once

#include "zmlx/kernel/cuda/dot.cuh"

namespace linear {
inline constexpr int has_norm = 1;
inline constexpr int has_bias = 2;
inline constexpr int has_residual = 4;
inline constexpr int rounds = 8; // to the dtype between additions, as separate ops would
inline constexpr int has_normal = 16; // the normalised x is a result as well

/// One weight, and where its products go; n is 0 if there is none.
template <typename T>
struct Output {
  Weight weight;
  const T* bias;
  T* out;
  int n;
};

template <typename T>
ZMLX_DEVICE float rounded(float x, int flags) {
  return flags & rounds ? to_float(from_float<T>(x)) : x;
}

/// Of a SwiGLU: gate / (1 + exp(-gate)) * up.
template <typename T>
ZMLX_DEVICE float swiglu(float gate, float up, int flags) {
  gate = rounded<T>(gate, flags);
  const float sigmoid = rounded<T>(1 / (1 + expf(-gate)), flags);
  return rounded<T>(gate * sigmoid, flags) * rounded<T>(up, flags);
}
} // namespace linear

/// x [rows, k] times up to 4 weights, R rows of x a block and 16 weight rows at a time; with `pair`, the first two weights are the
/// gate and up of a SwiGLU whose result goes to out0.
template <typename T, typename W, int R, bool pair>
__global__ void __launch_bounds__(256) linear_rows(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    int rows,
    int flags,
    Pointer residual,
    Pointer normal,
    Pointer codes0,
    Pointer scales0,
    Pointer biases0,
    Pointer bias0,
    Pointer out0,
    int n0,
    Pointer codes1,
    Pointer scales1,
    Pointer biases1,
    Pointer bias1,
    Pointer out1,
    int n1,
    Pointer codes2,
    Pointer scales2,
    Pointer biases2,
    Pointer bias2,
    Pointer out2,
    int n2,
    Pointer codes3,
    Pointer scales3,
    Pointer biases3,
    Pointer bias3,
    Pointer out3,
    int n3) {
  using D = Dot<T, W, R>;
  constexpr int weights = pair ? 2 : 1;
  const linear::Output<T> outputs[4] = {
      {weight_at(codes0, scales0, biases0), bias0.as<T>(), out0.as<T>(), n0},
      {weight_at(codes1, scales1, biases1), bias1.as<T>(), out1.as<T>(), n1},
      {weight_at(codes2, scales2, biases2), bias2.as<T>(), out2.as<T>(), n2},
      {weight_at(codes3, scales3, biases3), bias3.as<T>(), out3.as<T>(), n3}};
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int steps = (k + D::step - 1) / D::step;
  const int steps_a_warp = (steps + warps - 1) / warps;
  int tiles = (n0 + 15) / 16;
  if (!pair) {
    tiles += (n1 + 15) / 16 + (n2 + 15) / 16 + (n3 + 15) / 16;
  }
  const int blocks = static_cast<int>(gridDim.x);
  const int my_tiles = (tiles - static_cast<int>(blockIdx.x) + blocks - 1) / blocks;
  const int items = my_tiles * steps_a_warp;

  // The output of a tile, and its first row there.
  auto find = [&](int item, linear::Output<T>& output, int& row) {
    row = (static_cast<int>(blockIdx.x) + item / steps_a_warp * blocks) * 16;
    output = outputs[0];
    if (!pair) {
      for (int i = 1; i < 4; ++i) {
        const int before = (output.n + 15) / 16 * 16;
        if (row < before) {
          break;
        }
        row -= before;
        output = outputs[i];
      }
    }
  };
  auto load = [&](typename D::Loaded(&to)[weights], int item) {
    const int at = warp_index() + item % steps_a_warp * warps;
    if (item < items && at < steps) {
      linear::Output<T> output;
      int row;
      find(item, output, row);
      D::load(to[0], output.weight, row, output.n, k, at);
      if constexpr (pair) {
        D::load(to[1], outputs[1].weight, row, output.n, k, at);
      }
    }
  };

  typename D::Loaded one[weights];
  typename D::Loaded two[weights];
  load(one, 0);
  load(two, 1);
  start_successor();
  wait_for_predecessor();

  const int first_row = static_cast<int>(blockIdx.y) * R;
  const int my_rows = rows - first_row < R ? rows - first_row : R;
  float* parts;
  const Staged<T> staged = staged_in<T, D, W>(dynamic_shared(), R, k, &parts);
  const int part = warps * 16 * R;
  const int64_t first = static_cast<int64_t>(first_row) * k;
  stage_rows<T, D, W>(
      x.as<T>() + first,
      flags & linear::has_norm ? norm.as<T>() : nullptr,
      eps,
      k,
      my_rows,
      R,
      staged,
      flags & linear::has_normal && blockIdx.x == 0 ? normal.as<T>() + first : nullptr,
      parts);
  sync_block();

  typename D::Sums total[weights] = {};
  auto take = [&](typename D::Loaded(&from)[weights], int item) {
    const int at = warp_index() + item % steps_a_warp * warps;
    if (at < steps) {
      for (int w = 0; w < weights; ++w) {
        D::add(total[w], from[w], staged, at);
      }
    }
    if ((item + 1) % steps_a_warp) {
      return;
    }
    // Two sets of parts: while some threads add one up, others may write the other.
    float* set = parts + item / steps_a_warp % 2 * weights * part;
    for (int w = 0; w < weights; ++w) {
      D::store(total[w], set + w * part + warp_index() * 16 * R);
      total[w] = {};
    }
    sync_block();
    linear::Output<T> output;
    int row;
    find(item, output, row);
    for (int i = static_cast<int>(threadIdx.x); i < 16 * my_rows; i += static_cast<int>(blockDim.x)) {
      const int j = row + i % 16;
      float y[weights];
      for (int w = 0; w < weights; ++w) {
        y[w] = 0;
        for (int v = 0; v < warps; ++v) {
          y[w] += set[w * part + v * (16 * R) + i];
        }
      }
      if (j < output.n) {
        const int64_t place = static_cast<int64_t>(first_row + i / 16) * output.n + j;
        float result = y[0];
        if constexpr (pair) {
          result = linear::swiglu<T>(y[0], y[1], flags);
        } else {
          if (flags & linear::has_bias) {
            result = linear::rounded<T>(result, flags) + to_float(output.bias[j]);
          }
          if (flags & linear::has_residual) {
            result = linear::rounded<T>(result, flags) + to_float(residual.as<T>()[place]);
          }
        }
        output.out[place] = from_float<T>(result);
      }
    }
  };
  for (int item = 0; item < items; item += 2) {
    take(one, item);
    load(one, item + 2);
    if (item + 1 < items) {
      take(two, item + 1);
      load(two, item + 3);
    }
  }
}

/// The same for weights and dtypes that tensor cores do not take: a warp an element of the result, in float32. grid.y: rows.
template <typename T, typename W, bool pair>
__global__ void __launch_bounds__(256) linear_any(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    int flags,
    Pointer residual,
    Pointer normal,
    Pointer codes0,
    Pointer scales0,
    Pointer biases0,
    Pointer bias,
    Pointer out,
    int n,
    Pointer codes1,
    Pointer scales1,
    Pointer biases1) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = blockIdx.y;
  const T* mine = x.as<T>() + row * k;
  float inverse = 1;
  if (flags & linear::has_norm) {
    __shared__ float partial[8];
    sum_squares(mine, k, 1, partial);
    sync_block();
    float total = 0;
    for (int w = 0; w < 8; ++w) {
      total += partial[w];
    }
    inverse = inverse_sqrt(total / static_cast<float>(k) + eps);
  }
  const int j = static_cast<int>(blockIdx.x) * 8 + warp_index();
  const int from = j < n ? j : n - 1; // every lane takes part in the sums
  const Weight first = weight_row<T, W>(weight_at(codes0, scales0, biases0), from, k);
  const Weight second = weight_row<T, W>(weight_at(codes1, scales1, biases1), from, k);
  float y[2] = {0, 0};
  for (int i = lane_index(); i < k; i += 32) {
    float v = to_float(mine[i]);
    if (flags & linear::has_norm) {
      const T value = from_float<T>(v * inverse * to_float(norm.as<T>()[i]));
      v = to_float(value);
      if (flags & linear::has_normal && blockIdx.x == 0 && warp_index() == 0) {
        normal.as<T>()[row * k + i] = value;
      }
    }
    y[0] = fmaf(v, element_at<T, W>(first, i), y[0]);
    if constexpr (pair) {
      y[1] = fmaf(v, element_at<T, W>(second, i), y[1]);
    }
  }
  float result = warp_sum(y[0]);
  const int64_t place = row * n + j;
  if constexpr (pair) {
    result = linear::swiglu<T>(result, warp_sum(y[1]), flags);
  }
  if (j < n && lane_index() == 0) {
    if (flags & linear::has_bias) {
      result = linear::rounded<T>(result, flags) + to_float(bias.as<T>()[j]);
    }
    if (flags & linear::has_residual) {
      result = linear::rounded<T>(result, flags) + to_float(residual.as<T>()[place]);
    }
    out.as<T>()[place] = from_float<T>(result);
  }
}
