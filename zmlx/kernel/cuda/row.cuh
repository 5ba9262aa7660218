// zmlx/kernel/cuda/row.cuh: products of one row of activations, the decoding of one sequence. A warp has some steps of the row
// to itself, from the activations' staging on; what only some layers need is known when the kernel is compiled.
#pragma once

#include "zmlx/kernel/cuda/linear.cuh"

/// How a warp multiplies 16 weight rows by its part of a row: `slices` steps of `chunks` chunks, as Dot's, whose lanes and
/// columns it has with one row of activations and one tile. A step's sums of groups come out in columns of their own. `whole`:
/// rows are whole steps, with an even number of groups, and weights whole tiles.
template <typename T, typename W, int chunks, int slices, bool whole>
struct RowPart {
  using D = Dot<T, W, 1, chunks>;
  using P = Pairs<T, W>;
  static_assert(D::tiles == 1);
  static constexpr int part = slices * D::step; // elements
  static constexpr int pieces = (D::step + 255) / 256; // of 8 elements, that a lane has of a step
  static constexpr int part_sums = W::affine ? part / W::group : 0;
  static constexpr int zeros = D::piece * static_cast<int>(sizeof(T)); // bytes behind the part: what other columns get
  static constexpr int shared_bytes = (part * static_cast<int>(sizeof(T)) + zeros + part_sums * 4 + 15) / 16 * 16;
  static constexpr int ahead = slices < 2 ? 1 : 2; // steps under way

  /// The lane's elements of the part.
  struct Held {
    uint4 words[slices][pieces];
  };

  /// Where a piece begins within a row whose steps are `apart` apart; k or more if there is none.
  static ZMLX_DEVICE int place(int first, int apart, int slice, int piece, int k) {
    const int within = 8 * (lane_index() + 32 * piece);
    return within < D::step ? (first + slice * apart) * D::step + within : k;
  }

  /// Eight elements at each place of the part, 0 beyond k.
  static ZMLX_DEVICE Held read(const T* x, int first, int apart, int k) {
    Held held;
#pragma unroll
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int at = place(first, apart, s, p, k);
        held.words[s][p] = at < k ? *reinterpret_cast<const uint4*>(x + at) : uint4{0, 0, 0, 0};
      }
    }
    return held;
  }

  static ZMLX_DEVICE float sum_of_squares(const Held& held) {
    float sum = 0;
#pragma unroll
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const Eight x = unpack_eight<T>(held.words[s][p]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          sum = fmaf(x.v[i], x.v[i], sum);
        }
      }
    }
    return warp_sum(sum);
  }

  /// Times `inverse` and the norm's weights.
  static ZMLX_DEVICE void normalise(Held& held, const Held& weight, float inverse) {
#pragma unroll
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        Eight x = unpack_eight<T>(held.words[s][p]);
        const Eight w = unpack_eight<T>(weight.words[s][p]);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          x.v[i] = x.v[i] * inverse * w.v[i];
        }
        held.words[s][p] = pack_eight<T>(x);
      }
    }
  }

  static ZMLX_DEVICE void write(const Held& held, T* to, int first, int apart, int k) {
#pragma unroll
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int at = place(first, apart, s, p, k);
        if (at < k) {
          *reinterpret_cast<uint4*>(to + at) = held.words[s][p];
        }
      }
    }
  }

  /// Puts the part into the warp's own `shared` memory, in the order of Pairs, with the sums of its groups.
  static ZMLX_DEVICE Staged<T> stage(const Held& held, uint8_t* shared) {
    T* x = reinterpret_cast<T*>(shared);
    float* sums = reinterpret_cast<float*>(shared + part * static_cast<int>(sizeof(T)) + zeros);
#pragma unroll
    for (int s = 0; s < slices; ++s) {
#pragma unroll
      for (int p = 0; p < pieces; ++p) {
        const int within = 8 * (lane_index() + 32 * p);
        const Eight y = unpack_eight<T>(held.words[s][p]);
        Eight ordered;
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ordered.v[2 * i] = y.v[P::first(i)];
          ordered.v[2 * i + 1] = y.v[P::second(i)];
          sum += ordered.v[2 * i] + ordered.v[2 * i + 1];
        }
        if constexpr (W::affine) { // a group is in neighbouring lanes
#pragma unroll
          for (int i = W::group / 16; i > 0; i /= 2) {
            sum += shuffle_xor(sum, i);
          }
        }
        if (within < D::step) {
          *reinterpret_cast<uint4*>(x + s * D::step + within) = pack_eight<T>(ordered);
          if constexpr (W::affine) {
            if (within % W::group == 0) {
              sums[(s * D::step + within) / W::group] = sum;
            }
          }
        }
      }
    }
    if (lane_index() < zeros / 16) {
      *reinterpret_cast<uint4*>(x + part + 8 * lane_index()) = uint4{0, 0, 0, 0};
    }
    sync_warp();
    return {x, 0, sums, 0};
  }

  /// The weights of one step, and where this lane finds them.
  struct Stream {
    typename D::Loaded loaded[ahead];
    const uint8_t* codes[2]; // of rows g and g + 8
    const uint8_t* scales[2];
    const uint8_t* biases[2];
    Weight weight;
    int row;
    int n;
    int k;
    int first;
    int apart;

    /// Steps first, first + apart, ... of the rows from `row` on.
    ZMLX_DEVICE void begin(Weight its_weight, int its_row, int its_n, int its_k, int its_first, int its_apart) {
      weight = its_weight;
      row = its_row;
      n = its_n;
      k = its_k;
      first = its_first;
      apart = its_apart;
      if constexpr (whole) {
        const int g = lane_index() / 4;
        const int t = lane_index() % 4;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Weight mine = weight_row<T, W>(weight, row + g + 8 * h, k);
          codes[h] = mine.codes + first * step_bytes + t * 16;
          if constexpr (!W::dense) {
            const int at = (first * D::slots + 2 * t) * scale_bytes<T, W>;
            scales[h] = mine.scales + at;
            biases[h] = mine.biases + at;
          }
        }
      }
#pragma unroll
      for (int s = 0; s < ahead; ++s) {
        load(s);
      }
    }

    ZMLX_DEVICE void load(int slice) {
      auto& to = loaded[slice % ahead];
      if constexpr (!whole) {
        D::load(to, weight, row, n, k, first + slice * apart);
        return;
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const uint8_t* from = codes[h] + slice * apart * step_bytes;
#pragma unroll
        for (int c = 0; c < chunks; ++c) {
          to.codes[c][h] = load_once16(from + 64 * c);
        }
      }
      if constexpr (!W::dense) {
        const bool is_mine = D::slots == 8 || 2 * (lane_index() % 4) < D::slots;
        const int at = slice * apart * D::slots * scale_bytes<T, W>;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          to.scales[0][h] = is_mine ? pair_of_scales(scales[h] + at) : 0u;
          if constexpr (W::affine) {
            to.biases[0][h] = is_mine ? pair_of_scales(biases[h] + at) : 0u;
          }
        }
      }
    }

   private:
    static constexpr int step_bytes = D::step * 16 / D::piece;

    /// Two neighbours, the second in the upper half.
    static ZMLX_DEVICE uint32_t pair_of_scales(const uint8_t* at) {
      if constexpr (W::affine) {
        return *reinterpret_cast<const uint32_t*>(at);
      } else {
        const uint32_t both = *reinterpret_cast<const uint16_t*>(at);
        return (both & 0xFFu) | (both & 0xFF00u) << 8;
      }
    }
  };

  /// Adds the part's products with each of `weights` to its sums.
  template <int weights>
  static ZMLX_DEVICE void multiply(typename D::Sums (&to)[weights], Stream (&streams)[weights], const Staged<T>& staged) {
#pragma unroll
    for (int s = 0; s < slices; ++s) {
      step<weights>(to, streams, staged, s);
      if (s + ahead < slices) {
#pragma unroll
        for (int w = 0; w < weights; ++w) {
          streams[w].load(s + ahead);
        }
      }
    }
  }

 private:
  template <int weights>
  static ZMLX_DEVICE void step(
      typename D::Sums (&to)[weights], const Stream (&streams)[weights], const Staged<T>& staged, int slice) {
    constexpr int chains = weights == 1 ? 4 : 2; // of products that do not wait for each other
    const int g = lane_index() / 4;
    const int t = lane_index() % 4;
    float d[weights][chains][4] = {};
#pragma unroll
    for (int c = 0; c < chunks; ++c) {
      const int first = c * D::chunk + t * D::piece;
      const bool is_mine = g == (D::slots == 1 ? 0 : first / D::group);
      const T* x = staged.x + (is_mine ? slice * D::step + first : part);
#pragma unroll
      for (int q = 0; q < D::piece / 8; ++q) {
        const uint4 b = *reinterpret_cast<const uint4*>(x + 8 * q);
#pragma unroll
        for (int w = 0; w < weights; ++w) {
          const auto& codes = streams[w].loaded[slice % ahead].codes[c];
          const uint32_t upper[4] = {codes[0].x, codes[0].y, codes[0].z, codes[0].w};
          const uint32_t lower[4] = {codes[1].x, codes[1].y, codes[1].z, codes[1].w};
          uint32_t a[2][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            a[0][i] = P::get(upper, q, i);
            a[1][i] = P::get(lower, q, i);
          }
          multiply_add<T>(d[w][2 * (c % (chains / 2))], {a[0][0], a[1][0], a[0][1], a[1][1]}, {b.x, b.y});
          multiply_add<T>(d[w][2 * (c % (chains / 2)) + 1], {a[0][2], a[1][2], a[0][3], a[1][3]}, {b.z, b.w});
        }
      }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int slot = 2 * t + p;
      const bool is_mine = D::slots == 8 || slot < D::slots;
      float total = 0;
      if constexpr (W::affine) {
        total = is_mine ? staged.group_sums[slice * D::slots + slot] : 0.0f;
      }
#pragma unroll
      for (int w = 0; w < weights; ++w) {
        const auto& loaded = streams[w].loaded[slice % ahead];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float value = 0;
#pragma unroll
          for (int i = 0; i < chains; ++i) {
            value += d[w][i][2 * h + p];
          }
          float& sum = to[w].value[0][h][p];
          if constexpr (W::dense) {
            sum += is_mine ? value : 0.0f;
          } else {
            const float scale = scale_value<T, W>(loaded.scales[0][h] >> (16 * p));
            float product = scale * value;
            if constexpr (W::affine) {
              const float bias = scale_value<T, W>(loaded.biases[0][h] >> (16 * p));
              product = fmaf(scale, value - D::offset * total, bias * total);
            }
            sum += is_mine ? product : 0.0f;
          }
        }
      }
    }
  }
};

/// After the wait: a row of k elements, of which each of up to 8 warps holds its part, normalised if `norm` (with its weights in
/// norm_weight), times the streams' 16 rows each; thread i < 16 gets the products with row i. A normalised row goes to `normal`
/// if that is set.
template <typename Part, int weights, bool norm, typename T>
ZMLX_DEVICE void row_products(
    float (&y)[weights],
    typename Part::Stream (&streams)[weights],
    typename Part::Held held,
    const typename Part::Held& norm_weight,
    float eps,
    int k,
    T* normal) {
  const int warp = warp_index();
  const int warps = static_cast<int>(blockDim.x) / 32;
  float* squares = reinterpret_cast<float*>(dynamic_shared()); // 8, then sums of products: 16 a warp and weight
  float* sums = squares + 8;
  uint8_t* own = reinterpret_cast<uint8_t*>(sums + 16 * weights * warps) + warp * Part::shared_bytes;
  if constexpr (norm) {
    const float sum = Part::sum_of_squares(held);
    if (lane_index() == 0) {
      squares[warp] = sum;
    }
    sync_block();
    float total = 0;
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      total += w < warps ? squares[w] : 0.0f;
    }
    Part::normalise(held, norm_weight, inverse_sqrt(total / static_cast<float>(k) + eps));
    if (normal) {
      Part::write(held, normal, warp, warps, k);
    }
  }
  const Staged<T> staged = Part::stage(held, own);
  typename Part::D::Sums total[weights] = {};
  Part::multiply(total, streams, staged);
#pragma unroll
  for (int w = 0; w < weights; ++w) {
    Part::D::store(total[w], sums + (w * warps + warp) * 16);
  }
  sync_block();
  const int i = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int w = 0; w < weights; ++w) {
    y[w] = 0;
#pragma unroll
    for (int v = 0; v < 8; ++v) {
      y[w] += v < warps && i < 16 ? sums[(w * warps + v) * 16 + i] : 0.0f;
    }
  }
}

/// A row x [k] times up to 4 weights; with `pair` the first two are gate and up of a SwiGLU. A block makes 16 elements, its warps
/// sharing k.
template <typename T, typename W, int chunks, int slices, bool whole, int outputs, bool pair, int flags>
__global__ void __launch_bounds__(256, 2) row_linear(
    Pointer x,
    Pointer norm,
    float eps,
    int k,
    Pointer residual,
    Pointer normal,
    ZMLX_LINEAR_OUTPUT(0),
    ZMLX_LINEAR_OUTPUT(1),
    ZMLX_LINEAR_OUTPUT(2),
    ZMLX_LINEAR_OUTPUT(3)) {
  using Part = RowPart<T, W, chunks, slices, whole>;
  constexpr int weights = pair ? 2 : 1;
  const int warp = warp_index();
  const int warps = static_cast<int>(blockDim.x) / 32;
  int row = static_cast<int>(blockIdx.x) * 16;
  Weight weight[2] = {weight_at(codes0, scales0, biases0), {}};
  const T* bias = nullptr;
  if constexpr (flags & linear::has_bias) {
    bias = bias0.as<T>();
  }
  T* out = out0.as<T>();
  int n = n0;
  auto next = [&](Pointer codes, Pointer scales, Pointer biases, Pointer its_bias, Pointer its_out, int its_n) {
    const int before = linear::tiles_of(n) * 16;
    if (row >= before) {
      row -= before;
      weight[0] = weight_at(codes, scales, biases);
      if constexpr (flags & linear::has_bias) {
        bias = its_bias.as<T>();
      }
      out = its_out.as<T>();
      n = its_n;
      return true;
    }
    return false;
  };
  if constexpr (pair) {
    weight[1] = weight_at(codes1, scales1, biases1);
  } else if constexpr (outputs > 1) {
    bool is_later = next(codes1, scales1, biases1, bias1, out1, n1);
    if constexpr (outputs > 2) {
      is_later = is_later && next(codes2, scales2, biases2, bias2, out2, n2);
    }
    if constexpr (outputs > 3) {
      is_later = is_later && next(codes3, scales3, biases3, bias3, out3, n3);
    }
  }
  typename Part::Stream stream[weights];
#pragma unroll
  for (int w = 0; w < weights; ++w) {
    stream[w].begin(weight[w], row, n, k, warp, warps);
  }
  typename Part::Held norm_weight;
  if constexpr (flags & linear::has_norm) {
    norm_weight = Part::read(norm.as<T>(), warp, warps, k);
  }
  wait_for_predecessor();
  start_successor(); // not before: its loads would come before those that this launch's predecessor waits for

  const int i = static_cast<int>(threadIdx.x); // the product that this thread finishes, of 16
  const bool is_mine = i < 16 && row + i < n;
  float more = 0;
  if constexpr (flags & linear::has_residual) {
    more = is_mine ? to_float(residual.as<T>()[row + i]) : 0.0f;
  }
  float y[weights];
  row_products<Part, weights, (flags & linear::has_norm) != 0, T>(
      y,
      stream,
      Part::read(x.as<T>(), warp, warps, k),
      norm_weight,
      eps,
      k,
      flags & linear::has_normal && blockIdx.x == 0 ? normal.as<T>() : nullptr);
  if (is_mine) {
    float result = y[0];
    if constexpr (pair) {
      result = linear::swiglu<T>(y[0], y[1], 0);
    }
    if constexpr (flags & linear::has_bias) {
      result += to_float(bias[row + i]);
    }
    out[row + i] = from_float<T>(result + more);
  }
}
