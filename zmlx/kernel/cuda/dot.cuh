// zmlx/kernel/cuda/dot.cuh: 16 rows of a weight times a few rows of activations, on tensor cores. Made for decode: every lane
// has several 16-byte loads of codes under way, and codes are multiplied as they are; scales come in after.
#pragma once

#include "zmlx/kernel/cuda/weights.cuh"

template <typename T, typename W>
struct ScaleType {
  using type = uint8_t;
};
template <typename T, int bits, int group>
struct ScaleType<T, Affine<bits, group>> {
  using type = T;
};

template <typename T, typename W, typename Scale>
ZMLX_DEVICE float scale_value(Scale scale) {
  return scale_at<T, W>(&scale, 0);
}

/// Rows of activations as Dot takes them, in shared memory.
template <typename T>
struct Staged {
  T* x;
  int stride;
  float* group_sums;
  int sum_stride;
};

/// How a warp goes over 16 weight rows: lane (g, t) = (lane / 4, lane % 4) reads 16 bytes of rows g and g + 8, next to those of
/// the other t. The right operand's 8 columns are pairs (slot, row of x): each group of elements has a slot of its own, whose
/// column is zero elsewhere, so that sums of different groups come out apart and get their scales.
template <typename T, typename W, int R>
struct Dot {
  static constexpr int piece = 128 / element_bits<T, W>; // elements of 16 bytes
  static constexpr int chunk = 4 * piece;
  static constexpr int chunks = R <= 4 ? 2 : 1;
  static constexpr int step = chunks * chunk; // elements of a weight row that one step takes
  static constexpr int group = W::dense ? step : W::group;
  static constexpr int slots = step > group ? step / group : 1;
  static constexpr int chunk_slots = chunk > group ? chunk / group : 1;
  static constexpr int columns = slots * R;
  static constexpr int tiles = (columns + 7) / 8;
  static constexpr int slots_a_lane = R == 1 ? 2 : 1;
  static constexpr int sums = R == 16 ? 2 : 1;
  static constexpr float offset = Pairs<T, W>::offset;
  using Scale = typename ScaleType<T, W>::type;

  /// What one step needs from memory.
  struct Loaded {
    uint4 codes[chunks][2];
    Scale scales[tiles][slots_a_lane][2];
    Scale biases[tiles][slots_a_lane][2];
  };
  /// [.][h][p]: output row g + 8 * h; of x the row(s) of columns 2t + p.
  struct Sums {
    float value[sums][2][2];
  };

  static ZMLX_DEVICE int slot_of(int tile, int p) {
    return (8 * tile + 2 * (lane_index() % 4) + p) / R;
  }

  static ZMLX_DEVICE void load(Loaded& to, Weight weight, int first_row, int n, int k, int at) {
    const int g = lane_index() / 4;
    const int t = lane_index() % 4;
    for (int h = 0; h < 2; ++h) {
      const int wanted = first_row + g + 8 * h;
      const Weight row = weight_row<T, W>(weight, wanted < n ? wanted : n - 1, k);
      for (int c = 0; c < chunks; ++c) {
        const int first = at * step + c * chunk + t * piece;
        to.codes[c][h] = first < k ? load_once16(row.codes + static_cast<int64_t>(first) * 16 / piece) : uint4{0, 0, 0, 0};
      }
      if constexpr (!W::dense) {
        for (int tile = 0; tile < tiles; ++tile) {
          for (int p = 0; p < slots_a_lane; ++p) {
            const int slot = slot_of(tile, p);
            const int place = at * step / group + slot;
            const bool valid = slot < slots && place < k / group;
            to.scales[tile][p][h] = valid ? reinterpret_cast<const Scale*>(row.scales)[place] : Scale{};
            if constexpr (W::affine) {
              to.biases[tile][p][h] = valid ? reinterpret_cast<const Scale*>(row.biases)[place] : Scale{};
            }
          }
        }
      }
    }
  }

  /// staged: R rows, each 8 elements in the order of Pairs, zero beyond k.
  static ZMLX_DEVICE void add(Sums& to, const Loaded& from, const Staged<T>& staged, int at) {
    const int g = lane_index() / 4;
    const int t = lane_index() % 4;
    float d[tiles][4];
    for (int tile = 0; tile < tiles; ++tile) {
      for (int i = 0; i < 4; ++i) {
        d[tile][i] = 0;
      }
    }
    for (int c = 0; c < chunks; ++c) {
      const int first = c * chunk + t * piece;
      const int slot = slots == 1 ? 0 : first / group;
      const int begin = slots == 1 ? 0 : c * chunk / group * R; // the columns of this chunk
      const int end = begin + chunk_slots * R;
      const uint32_t words[2][4] = {
          {from.codes[c][0].x, from.codes[c][0].y, from.codes[c][0].z, from.codes[c][0].w},
          {from.codes[c][1].x, from.codes[c][1].y, from.codes[c][1].z, from.codes[c][1].w}};
#pragma unroll
      for (int q = 0; q < piece / 8; ++q) {
        uint32_t a[2][4];
        for (int i = 0; i < 4; ++i) {
          a[0][i] = Pairs<T, W>::get(words[0], q, i);
          a[1][i] = Pairs<T, W>::get(words[1], q, i);
        }
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (8 * tile >= end || 8 * tile + 8 <= begin) {
            continue;
          }
          const int column = 8 * tile + g;
          uint4 b{0, 0, 0, 0};
          if (column / R == slot) {
            b = *reinterpret_cast<const uint4*>(staged.x + column % R * staged.stride + at * step + first + 8 * q);
          }
          multiply_add<T>(d[tile], {a[0][0], a[1][0], a[0][1], a[1][1]}, {b.x, b.y});
          multiply_add<T>(d[tile], {a[0][2], a[1][2], a[0][3], a[1][3]}, {b.z, b.w});
        }
      }
    }
    for (int tile = 0; tile < tiles; ++tile) {
      for (int p = 0; p < 2; ++p) {
        const int column = 8 * tile + 2 * t + p;
        const int slot = column / R;
        for (int h = 0; h < 2; ++h) {
          float& sum = to.value[R == 16 ? tile % 2 : 0][h][p];
          const float value = d[tile][2 * h + p];
          if constexpr (W::dense) {
            sum += value;
          } else if (slot < slots) {
            const int s = R == 1 ? p : 0;
            const float scale = scale_value<T, W>(from.scales[tile][s][h]);
            if constexpr (W::affine) {
              const float total = staged.group_sums[column % R * staged.sum_stride + at * step / group + slot];
              sum += scale * (value - offset * total) + scale_value<T, W>(from.biases[tile][s][h]) * total;
            } else {
              sum += scale * value;
            }
          }
        }
      }
    }
  }

  /// Adds what lanes have for the same element: to[row of x][16 output rows], in shared memory.
  static ZMLX_DEVICE void store(const Sums& from, float* to) {
    const int g = lane_index() / 4;
    const int t = lane_index() % 4;
    for (int s = 0; s < sums; ++s) {
      for (int h = 0; h < 2; ++h) {
        float v[2] = {from.value[s][h][0], from.value[s][h][1]};
        if constexpr (R == 1) {
          v[0] += v[1];
        }
        for (int p = 0; p < (R == 1 ? 1 : 2); ++p) {
          if constexpr (R <= 4) {
            v[p] += shuffle_xor(v[p], 2);
          }
          if constexpr (R <= 2) {
            v[p] += shuffle_xor(v[p], 1);
          }
          if (2 * t + p < R) {
            to[(8 * s + 2 * t + p) * 16 + g + 8 * h] = v[p];
          }
        }
      }
    }
  }
};

/// Sums of squares of `rows` rows of x, as partial[row][warp].
template <typename T>
ZMLX_DEVICE void sum_squares(const T* x, int k, int rows, float* partial) {
  const int warps = static_cast<int>(blockDim.x) / 32;
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
    for (int i = static_cast<int>(threadIdx.x); i < k; i += static_cast<int>(blockDim.x)) {
      const float v = to_float(x[static_cast<int64_t>(r) * k + i]);
      sum += v * v;
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      partial[r * warps + warp_index()] = sum;
    }
  }
}

/// Puts `rows` rows of x [., k], normalised if `norm` is set, into shared memory; up to `all_rows` more are zero. With `normal`
/// they go there too. All threads of the block call it; sync_block() must follow. partial: a float for each row and warp.
template <typename T, typename D, typename W>
ZMLX_DEVICE void stage_rows(
    const T* x, const T* norm, float eps, int k, int rows, int all_rows, const Staged<T>& to, T* normal, float* partial) {
  using P = Pairs<T, W>;
  const int threads = static_cast<int>(blockDim.x);
  const int warps = threads / 32;
  const int padded = (k + D::step - 1) / D::step * D::step;
  if (norm) {
    sum_squares(x, k, rows, partial);
    sync_block();
  }
  for (int r = 0; r < all_rows; ++r) {
    float inverse = 1;
    if (norm && r < rows) {
      float total = 0;
      for (int w = 0; w < warps; ++w) {
        total += partial[r * warps + w];
      }
      inverse = inverse_sqrt(total / static_cast<float>(k) + eps);
    }
    for (int first = 0; first < padded; first += 8 * threads) {
      const int at = first + 8 * static_cast<int>(threadIdx.x);
      float v[8];
      float sum = 0;
      for (int i = 0; i < 8; ++i) {
        v[i] = 0;
        if (r < rows && at + i < k) {
          v[i] = to_float(x[static_cast<int64_t>(r) * k + at + i]);
          if (norm) {
            v[i] *= inverse * to_float(norm[at + i]);
          }
          const T value = from_float<T>(v[i]);
          v[i] = to_float(value);
          if (normal) {
            normal[static_cast<int64_t>(r) * k + at + i] = value;
          }
        }
        sum += v[i];
      }
      if constexpr (W::affine) {
        for (int i = W::group / 16; i > 0; i /= 2) {
          sum += shuffle_xor(sum, i);
        }
      }
      if (at < padded) {
        uint4 packed;
        packed.x = pack2<T>(v[P::first(0)], v[P::second(0)]);
        packed.y = pack2<T>(v[P::first(1)], v[P::second(1)]);
        packed.z = pack2<T>(v[P::first(2)], v[P::second(2)]);
        packed.w = pack2<T>(v[P::first(3)], v[P::second(3)]);
        *reinterpret_cast<uint4*>(to.x + r * to.stride + at) = packed;
        if constexpr (W::affine) {
          if (at % W::group == 0) {
            to.group_sums[r * to.sum_stride + at / W::group] = sum;
          }
        }
      }
    }
  }
}

/// Where stage_rows puts `rows` rows, and then come sums of products; the host asks for as much.
template <typename T, typename D, typename W>
ZMLX_DEVICE Staged<T> staged_in(uint8_t* shared, int rows, int k, float** parts) {
  const int padded = (k + D::step - 1) / D::step * D::step;
  Staged<T> staged;
  staged.x = reinterpret_cast<T*>(shared);
  staged.stride = padded + 8; // 16 bytes more than a row, so that rows begin in different banks
  staged.group_sums = reinterpret_cast<float*>(shared + rows * staged.stride * static_cast<int>(sizeof(T)));
  staged.sum_stride = padded / (W::affine ? W::group : padded) + 1;
  *parts = staged.group_sums + rows * staged.sum_stride;
  return staged;
}
