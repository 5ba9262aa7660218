// zmlx/kernel/cuda/dot.cuh: 16 rows of a weight times a few rows of activations, on tensor cores. Made for decode: every lane
// has several 16-byte loads of codes under way, and codes are multiplied as they are; scales come in after.
#pragma once

#include "zmlx/kernel/cuda/weights.cuh"

/// A scale or bias as it lies in memory, in the low bits.
template <typename T, typename W>
ZMLX_DEVICE uint32_t stored_scale(const uint8_t* scales, int64_t i) {
  if constexpr (W::affine) {
    return reinterpret_cast<const uint16_t*>(scales)[i];
  } else {
    return scales[i];
  }
}

template <typename T, typename W>
ZMLX_DEVICE float scale_value(uint32_t stored) {
  if constexpr (W::affine) {
    return to_float(T{static_cast<uint16_t>(stored)});
  } else {
    const auto byte = static_cast<uint8_t>(stored);
    return scale_at<T, W>(&byte, 0);
  }
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
template <typename T, typename W, int R, int chunks_>
struct Dot {
  static constexpr int piece = 128 / element_bits<T, W>; // elements of 16 bytes
  static constexpr int chunk = 4 * piece;
  static constexpr int chunks = chunks_; // 16-byte pieces that a lane has under way for each of its two rows
  static constexpr int step = chunks * chunk; // elements of a weight row that one step takes
  static constexpr int group = W::dense ? step : W::group;
  static_assert(step % group == 0); // a step has whole groups, as their sums are used at once
  static constexpr int slots = step / group;
  static constexpr int chunk_slots = chunk > group ? chunk / group : 1;
  static constexpr int columns = slots * R;
  static constexpr int tiles = (columns + 7) / 8;
  static constexpr int sums = R == 16 ? 2 : 1;
  static constexpr float offset = Pairs<T, W>::offset;

  /// What one step needs from memory.
  struct Loaded {
    uint4 codes[chunks][2];
    uint32_t scales[tiles][2]; // of the lane's slot; with R = 1 of its two slots, the second in the upper half
    uint32_t biases[tiles][2];
  };
  /// [.][h][p]: output row g + 8 * h; of x the row(s) of columns 2t + p.
  struct Sums {
    float value[sums][2][2];
  };

  static ZMLX_DEVICE int slot_of(int tile, int p) {
    return (8 * tile + 2 * (lane_index() % 4) + p) / R;
  }

  /// Scales or biases of the slots of this lane's columns.
  static ZMLX_DEVICE uint32_t load_scales(const uint8_t* row, int tile, int groups, int first) {
    const int slot = slot_of(tile, 0);
    const int place = first + slot;
    if (R == 1 && W::affine && slots % 2 == 0 && groups % 2 == 0) {
      return slot < slots && place < groups ? *reinterpret_cast<const uint32_t*>(row + 2 * place) : 0u;
    }
    uint32_t both = slot < slots && place < groups ? stored_scale<T, W>(row, place) : 0u;
    if (R == 1 && slot + 1 < slots && place + 1 < groups) {
      both |= stored_scale<T, W>(row, place + 1) << 16;
    }
    return both;
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
          to.scales[tile][h] = load_scales(row.scales, tile, k / group, at * step / group);
          if constexpr (W::affine) {
            to.biases[tile][h] = load_scales(row.biases, tile, k / group, at * step / group);
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
    float odd[tiles][4]; // a second chain of products: each waits for the one before
    for (int tile = 0; tile < tiles; ++tile) {
      for (int i = 0; i < 4; ++i) {
        d[tile][i] = odd[tile][i] = 0;
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
          multiply_add<T>(odd[tile], {a[0][2], a[1][2], a[0][3], a[1][3]}, {b.z, b.w});
        }
      }
    }
    for (int tile = 0; tile < tiles; ++tile) {
      for (int p = 0; p < 2; ++p) {
        const int column = 8 * tile + 2 * t + p;
        const int slot = column / R;
        for (int h = 0; h < 2; ++h) {
          float& sum = to.value[R == 16 ? tile % 2 : 0][h][p];
          const float value = d[tile][2 * h + p] + odd[tile][2 * h + p];
          if constexpr (W::dense) {
            sum += value;
          } else if (slot < slots) {
            const int shift = R == 1 ? 16 * p : 0;
            const float scale = scale_value<T, W>(from.scales[tile][h] >> shift);
            if constexpr (W::affine) {
              const float total = staged.group_sums[column % R * staged.sum_stride + at * step / group + slot];
              sum += scale * (value - offset * total) + scale_value<T, W>(from.biases[tile][h] >> shift) * total;
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

/// Eight neighbours of a row, in float32.
struct Eight {
  float v[8];
};

template <typename T>
ZMLX_DEVICE Eight unpack_eight(uint4 words) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
  Eight x;
  for (int i = 0; i < 4; ++i) {
    x.v[2 * i] = to_float(T{static_cast<uint16_t>(w[i] & 0xFFFFu)});
    x.v[2 * i + 1] = to_float(T{static_cast<uint16_t>(w[i] >> 16)});
  }
  return x;
}

template <typename T>
ZMLX_DEVICE uint4 pack_eight(const Eight& x) {
  return {
      pack2<T>(x.v[0], x.v[1]), pack2<T>(x.v[2], x.v[3]), pack2<T>(x.v[4], x.v[5]), pack2<T>(x.v[6], x.v[7])};
}

/// The part of a norm's weight that this thread needs first: asked for before the wait.
template <typename T>
ZMLX_DEVICE uint4 first_of_norm(const T* norm, int k) {
  const int at = 8 * static_cast<int>(threadIdx.x);
  return norm && at < k ? *reinterpret_cast<const uint4*>(norm + at) : uint4{0, 0, 0, 0};
}

/// Puts `rows` rows of x [., k], k a multiple of 8 and addresses of 16 bytes, normalised if `norm` is set, into shared memory;
/// up to `all_rows` more are zero. With `normal` they go there too. All threads of the block call it; sync_block() must follow.
/// partial: a float for each row and warp.
template <typename T, typename D, typename W>
ZMLX_DEVICE void stage_rows(
    const T* x,
    const T* norm,
    uint4 norm_first,
    float eps,
    int k,
    int rows,
    int all_rows,
    const Staged<T>& to,
    T* normal,
    float* partial) {
  using P = Pairs<T, W>;
  const int threads = static_cast<int>(blockDim.x);
  const int warps = threads / 32;
  const int thread = static_cast<int>(threadIdx.x);
  const int padded = (k + D::step - 1) / D::step * D::step;
  uint4 held{0, 0, 0, 0}; // what this thread reads first, of the first row
  if (8 * thread < k) {
    held = *reinterpret_cast<const uint4*>(x + 8 * thread);
  }
  if (norm && all_rows == 1) {
    float sum = 0;
#pragma unroll 1
    for (int at = 8 * thread; at < k; at += 8 * threads) {
      const Eight v = unpack_eight<T>(at == 8 * thread ? held : *reinterpret_cast<const uint4*>(x + at));
      for (int i = 0; i < 8; ++i) {
        sum = fmaf(v.v[i], v.v[i], sum);
      }
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) {
      partial[warp_index()] = sum;
    }
    sync_block();
  } else if (norm) { // a warp a row
#pragma unroll 1
    for (int r = warp_index(); r < rows; r += warps) {
      float sum = 0;
#pragma unroll 4
      for (int at = 8 * lane_index(); at < k; at += 256) {
        const Eight v = unpack_eight<T>(*reinterpret_cast<const uint4*>(x + static_cast<int64_t>(r) * k + at));
        for (int i = 0; i < 8; ++i) {
          sum = fmaf(v.v[i], v.v[i], sum);
        }
      }
      sum = warp_sum(sum);
      if (lane_index() < warps) {
        partial[r * warps + lane_index()] = lane_index() == 0 ? sum : 0.0f;
      }
    }
    sync_block();
  }
  // All rows as one, so that a thread has several reads under way.
  constexpr int ahead = 4;
  const int pieces = padded / 8;
  const int all = all_rows * pieces;
#pragma unroll 1
  for (int first = 0; first < all; first += ahead * threads) {
    uint4 words[ahead];
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      const int i = first + j * threads + thread;
      const int r = all_rows == 1 ? 0 : i / pieces;
      const int at = (i - r * pieces) * 8;
      words[j] = i == thread && 8 * thread < k ? held
          : i < all && r < rows && at < k
          ? *reinterpret_cast<const uint4*>(x + static_cast<int64_t>(r) * k + at)
          : uint4{0, 0, 0, 0};
    }
#pragma unroll 1
    for (int j = 0; j < ahead; ++j) {
      const int i = first + j * threads + thread;
      if (first + j * threads >= all) {
        break;
      }
      const int r = all_rows == 1 ? 0 : i / pieces;
      const int at = (i - r * pieces) * 8;
      Eight y = unpack_eight<T>(words[0]);
      words[0] = words[1];
      words[1] = words[2];
      words[2] = words[3];
      if (norm && i < all && r < rows && at < k) {
        float total = 0;
        for (int w = 0; w < 8; ++w) {
          total += w < warps ? partial[r * warps + w] : 0.0f;
        }
        const float inverse = inverse_sqrt(total / static_cast<float>(k) + eps);
        const Eight weight = unpack_eight<T>(
            at == 8 * thread ? norm_first : *reinterpret_cast<const uint4*>(norm + at));
        for (int e = 0; e < 8; ++e) {
          y.v[e] = to_float(from_float<T>(y.v[e] * inverse * weight.v[e]));
        }
        if (normal) {
          *reinterpret_cast<uint4*>(normal + static_cast<int64_t>(r) * k + at) = pack_eight<T>(y);
        }
      }
      float sum = 0;
      Eight ordered;
      for (int e = 0; e < 4; ++e) {
        ordered.v[2 * e] = y.v[P::first(e)];
        ordered.v[2 * e + 1] = y.v[P::second(e)];
        sum += ordered.v[2 * e] + ordered.v[2 * e + 1];
      }
      if constexpr (W::affine) { // a group is in neighbouring lanes: rows have whole groups
        for (int e = W::group / 16; e > 0; e /= 2) {
          sum += shuffle_xor(sum, e);
        }
      }
      if (i < all) {
        *reinterpret_cast<uint4*>(to.x + r * to.stride + at) = pack_eight<T>(ordered);
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
