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

/// Which outputs there are, and what is done with their products.
template <typename T>
struct Outputs {
  Output<T> list[4];
  const T* residual;
  int flags;

  /// The output that a tile of 16 weight rows belongs to, and the tile's first row there.
  ZMLX_DEVICE const Output<T> find(int tile, int& row) const {
    Output<T> output = list[0];
    row = tile * 16;
    for (int i = 1; i < 4; ++i) {
      const int before = (output.n + 15) / 16 * 16;
      if (row < before) {
        break;
      }
      row -= before;
      output = list[i];
    }
    return output;
  }

  /// What is added at a place of the result, 0 where nothing is.
  ZMLX_DEVICE float added(const Output<T>& output, int row, int column) const {
    const bool is_there = flags & has_residual && column < output.n;
    return is_there ? to_float(residual[static_cast<int64_t>(row) * output.n + column]) : 0.0f;
  }

  ZMLX_DEVICE void store(const Output<T>& output, int row, int column, float y, float more) const {
    if (column < output.n) {
      if (flags & has_bias) {
        y = rounded<T>(y, flags) + to_float(output.bias[column]);
      }
      if (flags & has_residual) {
        y = rounded<T>(y, flags) + more;
      }
      output.out[static_cast<int64_t>(row) * output.n + column] = from_float<T>(y);
    }
  }
};

ZMLX_DEVICE int tiles_of(int n) {
  return (n + 15) / 16;
}
} // namespace linear

#define ZMLX_LINEAR_OUTPUT(i) \
  Pointer codes##i, Pointer scales##i, Pointer biases##i, Pointer bias##i, Pointer out##i, int n##i
#define ZMLX_LINEAR_OUTPUTS(T)                                                                                \
  {{{weight_at(codes0, scales0, biases0), bias0.as<T>(), out0.as<T>(), n0},                                   \
    {weight_at(codes1, scales1, biases1), bias1.as<T>(), out1.as<T>(), n1},                                   \
    {weight_at(codes2, scales2, biases2), bias2.as<T>(), out2.as<T>(), n2},                                   \
    {weight_at(codes3, scales3, biases3), bias3.as<T>(), out3.as<T>(), n3}},                                  \
   residual.as<T>(),                                                                                          \
   flags}

/// x [rows, k] times up to 4 weights, R rows of x a block. A block makes 16 elements of each of its rows, its warps sharing k;
/// with `pair`, the first two weights are the gate and up of a SwiGLU whose result goes to out0.
template <typename T, typename W, int R, int chunks, bool pair>
__global__ void __launch_bounds__(256, chunks <= 2 && R <= 4 && !pair ? 3 : 2) linear_rows(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    int rows,
    int flags,
    Pointer residual,
    Pointer normal,
    ZMLX_LINEAR_OUTPUT(0),
    ZMLX_LINEAR_OUTPUT(1),
    ZMLX_LINEAR_OUTPUT(2),
    ZMLX_LINEAR_OUTPUT(3)) {
  using D = Dot<T, W, R, chunks>;
  constexpr int weights = pair ? 2 : 1;
  const linear::Outputs<T> outputs = ZMLX_LINEAR_OUTPUTS(T);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int steps = (k + D::step - 1) / D::step;
  int row;
  const linear::Output<T> output = outputs.find(static_cast<int>(blockIdx.x), row);
  const Weight other = outputs.list[1].weight;
  typename D::Loaded loaded[weights];
  auto load = [&](int at) {
    D::load(loaded[0], output.weight, row, output.n, k, at);
    if constexpr (pair) {
      D::load(loaded[1], other, row, output.n, k, at);
    }
  };
  load(warp_index());
  const T* norm_weight = flags & linear::has_norm ? norm.as<T>() : nullptr;
  const uint4 norm_first = first_of_norm(norm_weight, k);
  start_successor();
  wait_for_predecessor();

  const int first_row = static_cast<int>(blockIdx.y) * R;
  const int my_rows = rows - first_row < R ? rows - first_row : R;
  const int i = static_cast<int>(threadIdx.x); // the product that this thread finishes, of 16 * R
  const float more = i < 16 * my_rows ? outputs.added(output, first_row + i / 16, row + i % 16) : 0.0f;
  float* parts;
  const Staged<T> staged = staged_in<T, D, W>(dynamic_shared(), R, k, &parts);
  const int64_t first = static_cast<int64_t>(first_row) * k;
  stage_rows<T, D, W>(
      x.as<T>() + first,
      norm_weight,
      norm_first,
      eps,
      k,
      my_rows,
      R,
      staged,
      flags & linear::has_normal && blockIdx.x == 0 ? normal.as<T>() + first : nullptr,
      parts);
  sync_block();

  typename D::Sums total[weights] = {};
#pragma unroll 1
  for (int at = warp_index(); at < steps; at += warps) {
    for (int w = 0; w < weights; ++w) {
      D::add(total[w], loaded[w], staged, at);
    }
    if (at + warps < steps) {
      load(at + warps);
    }
  }
  for (int w = 0; w < weights; ++w) {
    D::store(total[w], parts + (w * warps + warp_index()) * 16 * R);
  }
  sync_block();
  if (i < 16 * my_rows) {
    float y[weights];
    for (int w = 0; w < weights; ++w) {
      y[w] = 0;
      for (int v = 0; v < 8; ++v) {
        y[w] += v < warps ? parts[(w * warps + v) * 16 * R + i] : 0.0f;
      }
    }
    float result = y[0];
    if constexpr (pair) {
      result = linear::swiglu<T>(y[0], y[1], flags);
    }
    outputs.store(output, first_row + i / 16, row + i % 16, result, more);
  }
}

/// The same for weights of so many rows that every warp has some of its own: a warp makes 16 elements, and blocks never wait.
template <typename T, typename W, int R, int chunks>
__global__ void __launch_bounds__(256) linear_wide(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    int rows,
    int flags,
    Pointer residual,
    Pointer normal,
    ZMLX_LINEAR_OUTPUT(0),
    ZMLX_LINEAR_OUTPUT(1),
    ZMLX_LINEAR_OUTPUT(2),
    ZMLX_LINEAR_OUTPUT(3)) {
  using D = Dot<T, W, R, chunks>;
  const linear::Outputs<T> outputs = ZMLX_LINEAR_OUTPUTS(T);
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int all_warps = static_cast<int>(gridDim.x) * warps;
  const int steps = (k + D::step - 1) / D::step;
  const int tiles = linear::tiles_of(n0) + linear::tiles_of(n1) + linear::tiles_of(n2) + linear::tiles_of(n3);
  const int first_tile = warp_index() * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int items = (tiles - first_tile + all_warps - 1) / all_warps * steps;
  auto load = [&](typename D::Loaded& to, int item) {
    if (item < items) {
      int row;
      const linear::Output<T> output = outputs.find(first_tile + item / steps * all_warps, row);
      D::load(to, output.weight, row, output.n, k, item % steps);
    }
  };
  typename D::Loaded one;
  typename D::Loaded two;
  load(one, 0);
  load(two, 1);
  const T* norm_weight = flags & linear::has_norm ? norm.as<T>() : nullptr;
  const uint4 norm_first = first_of_norm(norm_weight, k);
  start_successor();
  wait_for_predecessor();

  const int first_row = static_cast<int>(blockIdx.y) * R;
  const int my_rows = rows - first_row < R ? rows - first_row : R;
  float* parts;
  const Staged<T> staged = staged_in<T, D, W>(dynamic_shared(), R, k, &parts);
  const int64_t first = static_cast<int64_t>(first_row) * k;
  stage_rows<T, D, W>(
      x.as<T>() + first,
      norm_weight,
      norm_first,
      eps,
      k,
      my_rows,
      R,
      staged,
      flags & linear::has_normal && blockIdx.x == 0 ? normal.as<T>() + first : nullptr,
      parts);
  sync_block();

  typename D::Sums total = {};
  auto take = [&](const typename D::Loaded& from, int item) {
    D::add(total, from, staged, item % steps);
    if (item % steps < steps - 1) {
      return;
    }
    float* own = parts + warp_index() * 16 * R;
    D::store(total, own);
    total = {};
    sync_warp();
    int row;
    const linear::Output<T> output = outputs.find(first_tile + item / steps * all_warps, row);
#pragma unroll 1
    for (int i = lane_index(); i < 16 * my_rows; i += 32) {
      const float more = outputs.added(output, first_row + i / 16, row + i % 16);
      outputs.store(output, first_row + i / 16, row + i % 16, own[i], more);
    }
    sync_warp();
  };
#pragma unroll 1
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
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < k; i += 256) {
      const float v = to_float(mine[i]);
      sum = fmaf(v, v, sum);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      partial[warp_index()] = sum;
    }
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
