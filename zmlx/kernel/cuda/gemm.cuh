// zmlx/kernel/cuda/gemm.cuh: matrix products of many rows, dense and grouped by expert: y = x @ w^T, w decoded on the way.
#pragma once

#include "zmlx/kernel/cuda/gemm_codes.cuh"

inline constexpr int gemm_threads = 256;
inline constexpr int gemm_width = 128; // weight rows of one block: gate and up rows count apiece
inline constexpr int gemm_depth = 64; // of one stage
inline constexpr int gemm_stages = 3;

struct GemmWeights {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* biases;
};

/// What one block computes: rows [first, first + count) of y.
struct GemmTile {
  int first;
  int count; // at most the tile's height
  int expert;
};

/// The tile number `index` of `height` rows when each expert's rows begin a new one; count 0 past the end.
ZMLX_DEVICE GemmTile find_tile(const int* offsets, int experts, int height, int index) {
  const int lane = lane_index();
  int before = 0;
  for (int e = 0; e < experts; e += 32) {
    const bool valid = e + lane < experts;
    const int begin = valid ? offsets[e + lane] : 0;
    const int end = valid ? offsets[e + lane + 1] : 0;
    const int tiles = (end - begin + height - 1) / height;
    int sum = tiles;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int other = shuffle_up(sum, d);
      sum += lane >= d ? other : 0;
    }
    const int upto = before + sum;
    const uint32_t past = vote(upto > index);
    if (past) {
      const int owner = 31 - bit_count(past) + 1; // sums do not fall: the lanes past it are the last ones
      const int first = shuffle(begin + (index - upto + tiles) * height, owner);
      const int stop = shuffle(end, owner);
      return {first, stop - first < height ? stop - first : height, e + owner};
    }
    before = shuffle(upto, 31);
  }
  return {0, 0, 0};
}

/// silu(gate) * up.
ZMLX_DEVICE float gemm_swiglu(float gate, float up) {
  return gate / (1.0f + fast_exp(-gate)) * up;
}

/// Where a tile's results go.
template <typename T>
struct GemmOut {
  T* y;
  float* partial; // [splits, rows, n]: float32 sums of a part of k, instead of y
  const T* bias;
  const T* residual;
  int n;

  ZMLX_DEVICE void store(int64_t row, int column, float value) const {
    if (column >= n) {
      return;
    }
    const int64_t at = row * n + column;
    if (partial) {
      partial[at] = value;
      return;
    }
    value += bias ? to_float(bias[column]) : 0.0f;
    value += residual ? to_float(residual[at]) : 0.0f;
    y[at] = from_float<T>(value);
  }

  /// Two neighbours, the first in an even column.
  ZMLX_DEVICE void store2(int64_t row, int column, float a, float b) const {
    if (partial || bias || residual || n % 2 || column >= n) {
      store(row, column, a);
      store(row, column + 1, b);
    } else {
      *reinterpret_cast<uint32_t*>(y + row * n + column) = pack2<T>(a, b);
    }
  }
};

/// The 16-byte chunk of a stage's tile, rows of 128 bytes, permuted so that eight rows' equal chunks lie in different banks.
ZMLX_DEVICE uint8_t* gemm_chunk(uint8_t* tile, int row, int chunk) {
  return tile + row * (gemm_depth * 2) + ((chunk ^ (row & 7)) << 4);
}

/// One tile of `height` rows. Stages of x (and of dense weights) arrive by asynchronous copies; codes come through registers,
/// two stages ahead, and are decoded into shared memory while the stage before is multiplied.
template <typename T, typename W, int height, bool gated>
ZMLX_DEVICE void gemm_tile(
    const T* x,
    const int* order,
    int per_row,
    const GemmTile& tile,
    const GemmWeights& weight,
    const GemmWeights& up,
    const GemmOut<T>& out,
    int column_tile,
    int k,
    int first_stage,
    int stage_count) {
  constexpr int warps_m = height >= 64 ? 2 : 1;
  constexpr int warps_n = 8 / warps_m;
  constexpr int tiles_m = height / 16 / warps_m;
  constexpr int tiles_n = gemm_width / 8 / warps_n;
  constexpr int copies = (height * 8 + gemm_threads - 1) / gemm_threads;
  constexpr int x_bytes = height * gemm_depth * 2;
  constexpr int w_bytes = gemm_width * gemm_depth * 2;
  constexpr int w_stages = W::dense ? gemm_stages : 2;
  uint8_t* x_tiles = dynamic_shared();
  uint8_t* w_tiles = x_tiles + gemm_stages * x_bytes;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_index();
  const int warp_m = warp_index() % warps_m;
  const int warp_n = warp_index() / warps_m;

  // x: this thread copies one chunk of rows thread / 8 + 32 i.
  const int x_chunk = thread % 8;
  const T* x_rows[copies];
  bool x_valid[copies];
#pragma unroll
  for (int i = 0; i < copies; ++i) {
    const int row = thread / 8 + 32 * i;
    x_valid[i] = row < tile.count;
    const int at = tile.first + (x_valid[i] ? row : 0);
    x_rows[i] = x + static_cast<int64_t>(order ? order[at] / per_row : at) * k;
  }
  // Weights: this thread decodes half of row thread / 2 of the tile. Gate and up rows alternate in eights.
  const int w_row = thread / 2;
  const int half = thread % 2;
  const int w_first = gated ? column_tile * (gemm_width / 2) + w_row / 16 * 8 + w_row % 8 : column_tile * gemm_width + w_row;
  const bool w_valid = w_first < out.n;
  const GemmWeights& own = gated && w_row % 16 >= 8 ? up : weight;
  const int64_t w_global = static_cast<int64_t>(tile.expert) * out.n + (w_valid ? w_first : 0);

  auto copy = [&](int s) {
    if (s < stage_count) {
      const int begin = (first_stage + s) * gemm_depth;
      const bool inside = begin + x_chunk * 8 < k;
      uint8_t* to = x_tiles + s % gemm_stages * x_bytes;
#pragma unroll
      for (int i = 0; i < copies; ++i) {
        const int row = thread / 8 + 32 * i;
        if (height * 8 >= gemm_threads || row < height) {
          copy_async16(
              gemm_chunk(to, row, x_chunk), x_rows[i] + (inside ? begin + x_chunk * 8 : 0), inside && x_valid[i]);
        }
      }
      if constexpr (W::dense) {
        const T* from = reinterpret_cast<const T*>(own.codes) + w_global * k;
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const int at = begin + (half * 4 + q) * 8;
          copy_async16(
              gemm_chunk(w_tiles + s % gemm_stages * w_bytes, w_row, half * 4 + q),
              from + (at < k ? at : 0),
              at < k && w_valid);
        }
      }
    }
    commit_copies();
  };

  float sums[tiles_m][tiles_n][4];
#pragma unroll
  for (int i = 0; i < tiles_m; ++i) {
#pragma unroll
    for (int j = 0; j < tiles_n; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        sums[i][j][c] = 0.0f;
      }
    }
  }
  W next;
  W later;
  auto load = [&](W& to, int s) {
    if constexpr (!W::dense) {
      const int run = (first_stage + s) * 2 + half;
      to.load(own.codes, own.scales, own.biases, w_global, run, k, w_valid && s < stage_count && run * 32 < k);
    }
  };
  auto decode = [&](int s, int q) {
    if constexpr (!W::dense) {
      *reinterpret_cast<uint4*>(gemm_chunk(w_tiles + s % 2 * w_bytes, w_row, half * 4 + q)) = next.decode(q);
    }
  };
  load(next, 0);
  load(later, 1);
#pragma unroll
  for (int s = 0; s < gemm_stages - 1; ++s) {
    copy(s);
  }
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    decode(0, q);
  }
  next = later;

  // Addresses of this lane's row in ldmatrix: x tiles are (rows, +8), then k + 8; weights' (k, +8), then rows + 8.
  const int x_lane = warp_m * tiles_m * 16 + lane % 16;
  const int w_lane = warp_n * tiles_n * 8 + lane / 16 * 8 + lane % 8;
  for (int s = 0; s < stage_count; ++s) {
    wait_for_copies<gemm_stages - 2>();
    sync_block();
    copy(s + gemm_stages - 1);
    load(later, s + 2);
    uint8_t* x_now = x_tiles + s % gemm_stages * x_bytes;
    uint8_t* w_now = w_tiles + s % w_stages * w_bytes;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      uint32_t b[tiles_n / 2][4];
#pragma unroll
      for (int j = 0; j < tiles_n / 2; ++j) {
        load_tiles(b[j], gemm_chunk(w_now, w_lane + j * 16, 2 * q + lane / 8 % 2));
      }
      uint32_t a[tiles_m][4];
#pragma unroll
      for (int i = 0; i < tiles_m; ++i) {
        load_tiles(a[i], gemm_chunk(x_now, x_lane + i * 16, 2 * q + lane / 16));
      }
      decode(s + 1, q);
#pragma unroll
      for (int i = 0; i < tiles_m; ++i) {
#pragma unroll
        for (int j = 0; j < tiles_n; ++j) {
          const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
          multiply_add<T>(sums[i][j], a[i], pair);
        }
      }
    }
    next = later;
  }
  wait_for_copies<0>();

#pragma unroll
  for (int i = 0; i < tiles_m; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = (warp_m * tiles_m + i) * 16 + h * 8 + lane / 4;
      if (row < tile.count) {
#pragma unroll
        for (int j = 0; j < tiles_n; j += gated ? 2 : 1) {
          const float* v = sums[i][j] + 2 * h;
          const int group = warp_n * tiles_n + j;
          if constexpr (gated) {
            const float* u = sums[i][j + 1] + 2 * h;
            out.store2(
                tile.first + row,
                column_tile * (gemm_width / 2) + group / 2 * 8 + lane % 4 * 2,
                gemm_swiglu(v[0], u[0]),
                gemm_swiglu(v[1], u[1]));
          } else {
            out.store2(tile.first + row, column_tile * gemm_width + group * 8 + lane % 4 * 2, v[0], v[1]);
          }
        }
      }
    }
  }
}

/// Tiles on tensor cores, k a multiple of 32. Blocks: x = tiles of rows, each for all tiles of columns; y = parts of k. `flags`
/// says which arguments there are: 1 bias, 2 residual, 4 order, 8 partial sums.
template <typename T, typename W, int height, bool gated, bool grouped>
__global__ void __launch_bounds__(gemm_threads, 2) gemm_tiles(
    Pointer x, Pointer codes, Pointer scales, Pointer biases, Pointer up_codes, Pointer up_scales, Pointer up_biases, Pointer bias,
    Pointer residual, Pointer order, Pointer offsets, Pointer y, Pointer partial, int rows, int n, int k, int experts, int per_row,
    int flags) {
  start_successor();
  wait_for_predecessor();
  const int columns = gated ? gemm_width / 2 : gemm_width;
  const int column_tiles = (n + columns - 1) / columns;
  const int row_tile = static_cast<int>(blockIdx.x) / column_tiles;
  const int column_tile = static_cast<int>(blockIdx.x) % column_tiles;
  GemmTile tile{row_tile * height, rows - row_tile * height, 0};
  if constexpr (grouped) {
    tile = find_tile(offsets.as<const int>(), experts, height, row_tile);
  }
  if (tile.count <= 0) {
    return;
  }
  tile.count = tile.count < height ? tile.count : height;
  const int stages = (k + gemm_depth - 1) / gemm_depth;
  const int part = (stages + static_cast<int>(gridDim.y) - 1) / static_cast<int>(gridDim.y);
  const int first = static_cast<int>(blockIdx.y) * part;
  const int count = stages - first < part ? stages - first : part;
  const GemmWeights weight{codes.as<const uint8_t>(), scales.as<const uint8_t>(), biases.as<const uint8_t>()};
  const GemmWeights second{up_codes.as<const uint8_t>(), up_scales.as<const uint8_t>(), up_biases.as<const uint8_t>()};
  const GemmOut<T> out{
      y.as<T>(),
      flags & 8 ? partial.as<float>() + static_cast<int64_t>(blockIdx.y) * rows * n : nullptr,
      flags & 1 ? bias.as<const T>() : nullptr,
      flags & 2 ? residual.as<const T>() : nullptr,
      n};
  const int* index = flags & 4 ? order.as<const int>() : nullptr;
  constexpr int less = height > 16 ? height / 2 : height;
  if (tile.count <= less) {
    gemm_tile<T, W, less, gated>(x.as<const T>(), index, per_row, tile, weight, second, out, column_tile, k, first, count);
  } else if constexpr (height > less) {
    gemm_tile<T, W, height, gated>(x.as<const T>(), index, per_row, tile, weight, second, out, column_tile, k, first, count);
  }
}

/// Adds the parts of k.
template <typename T>
__global__ void __launch_bounds__(gemm_threads)
    gemm_combine(Pointer partial, Pointer bias, Pointer residual, Pointer y, int rows, int n, int parts, int flags) {
  start_successor();
  wait_for_predecessor();
  const int64_t at = static_cast<int64_t>(blockIdx.x) * gemm_threads + threadIdx.x;
  const int64_t size = static_cast<int64_t>(rows) * n;
  if (at >= size) {
    return;
  }
  float sum = 0.0f;
  for (int i = 0; i < parts; ++i) {
    sum += partial.as<const float>()[i * size + at];
  }
  sum += flags & 1 ? to_float(bias.as<const T>()[at % n]) : 0.0f;
  sum += flags & 2 ? to_float(residual.as<const T>()[at]) : 0.0f;
  y.as<T>()[at] = from_float<T>(sum);
}

inline constexpr int plain_size = 64; // rows and columns of a block
inline constexpr int plain_depth = 16;

/// Any dtype and any k: tiles of float32, four by four sums a thread.
template <typename T, typename W, bool gated, bool grouped>
__global__ void __launch_bounds__(gemm_threads) gemm_plain(
    Pointer x, Pointer codes, Pointer scales, Pointer biases, Pointer up_codes, Pointer up_scales, Pointer up_biases, Pointer bias,
    Pointer residual, Pointer order, Pointer offsets, Pointer y, Pointer, int rows, int n, int k, int experts, int per_row, int flags) {
  __shared__ float x_tile[plain_depth][plain_size + 4];
  __shared__ float w_tile[plain_depth][plain_size + 4];
  start_successor();
  wait_for_predecessor();
  const int columns = gated ? plain_size / 2 : plain_size;
  const int column_tiles = (n + columns - 1) / columns;
  const int row_tile = static_cast<int>(blockIdx.x) / column_tiles;
  const int column = static_cast<int>(blockIdx.x) % column_tiles * columns;
  GemmTile tile{row_tile * plain_size, rows - row_tile * plain_size, 0};
  if constexpr (grouped) {
    tile = find_tile(offsets.as<const int>(), experts, plain_size, row_tile);
  }
  if (tile.count <= 0) {
    return;
  }
  const int thread = static_cast<int>(threadIdx.x);
  const int own = thread / 4; // the row of both tiles that this thread fills
  const int part = thread % 4 * 4;
  const T* x_row = nullptr;
  if (own < tile.count) {
    const int at = tile.first + own;
    x_row = x.as<const T>() + static_cast<int64_t>(flags & 4 ? order.as<const int>()[at] / per_row : at) * k;
  }
  // Gate and up rows alternate, so that a thread's neighbours in a row are a pair.
  const int w_column = gated ? column + own / 2 : column + own;
  const int64_t w_row = static_cast<int64_t>(tile.expert) * n + w_column;
  const bool second = gated && own % 2;
  const auto* w_codes = (second ? up_codes : codes).template as<const uint8_t>();
  const auto* w_scales = (second ? up_scales : scales).template as<const uint8_t>();
  const auto* w_biases = (second ? up_biases : biases).template as<const uint8_t>();
  const int row = thread / 16 * 4;
  const int at = thread % 16 * 4;
  float sums[4][4] = {};
  for (int begin = 0; begin < k; begin += plain_depth) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int i = begin + part + c;
      x_tile[part + c][own] = x_row && i < k ? to_float(x_row[i]) : 0.0f;
      w_tile[part + c][own] = w_column < n && i < k ? W::element(w_codes, w_scales, w_biases, w_row, i, k) : 0.0f;
    }
    sync_block();
#pragma unroll 4
    for (int d = 0; d < plain_depth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[i][j] += x_tile[d][row + i] * w_tile[d][at + j];
        }
      }
    }
    sync_block();
  }
  const GemmOut<T> out{
      y.as<T>(), nullptr, flags & 1 ? bias.as<const T>() : nullptr, flags & 2 ? residual.as<const T>() : nullptr, n};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i < tile.count) {
#pragma unroll
      for (int j = 0; j < 4; j += gated ? 2 : 1) {
        if constexpr (gated) {
          out.store(tile.first + row + i, column + (at + j) / 2, gemm_swiglu(sums[i][j], sums[i][j + 1]));
        } else {
          out.store(tile.first + row + i, column + at + j, sums[i][j]);
        }
      }
    }
  }
}
