// zmlx/kernel/cuda/search.cuh: running sums, the k largest of a row, and experts by their router's logits; a warp a row.
#pragma once

#include "zmlx/kernel/cuda/elements.cuh"

/// The row of this warp; warps past the last row have none.
ZMLX_DEVICE int64_t row_of_warp() {
  return static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + warp_index();
}

/// A row is one warp's, or a block's of `warps`.
template <typename T, int warps>
__global__ void __launch_bounds__(256) cumsum(Pointer x, Pointer out, int rows, int width) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = warps == 1 ? row_of_warp() : blockIdx.x;
  if (row >= rows) {
    return;
  }
  constexpr int size = Pack<T>::size;
  constexpr int span = 32 * warps * size;
  const T* from = x.as<T>() + row * width;
  T* to = out.as<T>() + row * width;
  __shared__ float totals[warps];
  float before = 0;
  const int first = (warps == 1 ? lane_index() : static_cast<int>(threadIdx.x)) * size;
  Pack<T> next = load_pack(from + first, width - first);
  for (int i = first; i - first < width; i += span) {
    const Pack<T> pack = next;
    next = load_pack(from + i + span, width - i - span);
    float sums[size];
    float total = 0;
    for (int j = 0; j < size; ++j) {
      total += to_float(pack.v[j]); // zero past the end
      sums[j] = total;
    }
    float through = total; // the sum of this lane and those below it
    for (int d = 1; d < 32; d *= 2) {
      const float lower = shuffle_up(through, d);
      through += lane_index() >= d ? lower : 0.0f;
    }
    const float lower = shuffle_up(through, 1);
    float all = shuffle(through, 31);
    float start = before + (lane_index() ? lower : 0.0f);
    if constexpr (warps > 1) {
      sync_block(); // the last totals have been read
      if (lane_index() == 0) {
        totals[warp_index()] = all;
      }
      sync_block();
      all = 0;
      for (int w = 0; w < warps; ++w) {
        start += w == warp_index() ? all : 0.0f;
        all += totals[w];
      }
    }
    Pack<T> y;
    for (int j = 0; j < size; ++j) {
      y.v[j] = from_float<T>(start + sums[j]);
    }
    if (i < width) {
      store_pack(y, to + i, width - i);
    }
    before += all;
  }
}

/// A number that is larger the earlier (value, index) comes: NaN, then by value, then by index.
ZMLX_DEVICE uint64_t order_of(float value, int index) {
  const uint32_t bits = float_to_bits(value + 0.0f); // -0 becomes 0
  const uint32_t key = value != value ? 0xFFFFFFFFu : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(key) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}
ZMLX_DEVICE int index_in(uint64_t order) {
  return static_cast<int>(0xFFFFFFFFu - static_cast<uint32_t>(order));
}
ZMLX_DEVICE uint64_t warp_first(uint64_t order) {
  for (int d = 16; d > 0; d /= 2) {
    const uint64_t other = shuffle_xor(order, d);
    order = other > order ? other : order;
  }
  return order;
}

/// The k largest of each row, the largest first, and where they are: k passes over a row that stays in L1.
template <typename T>
__global__ void __launch_bounds__(256) top_k(Pointer x, Pointer values, Pointer indices, int rows, int width, int k) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = row_of_warp();
  if (row >= rows) {
    return;
  }
  const T* from = x.as<T>() + row * width;
  uint64_t last = ~uint64_t{0};
  for (int n = 0; n < k; ++n) {
    uint64_t best = 0;
    for (int i = lane_index(); i < width; i += 32) {
      const uint64_t order = order_of(to_float(from[i]), i);
      best = order < last && order > best ? order : best;
    }
    last = warp_first(best);
    if (lane_index() == 0) {
      values.as<T>()[row * k + n] = from[index_in(last)];
      indices.as<uint32_t>()[row * k + n] = static_cast<uint32_t>(index_in(last));
    }
  }
}

/// Experts of largest score, their weights times scale, over their sum with `normalises`. Scores are softmax or sigmoid of the
/// logits; a bias counts for the choice alone.
template <typename T, bool sigmoid, bool biased, bool normalises>
__global__ void __launch_bounds__(256) gate_experts(
    Pointer logits,
    Pointer bias,
    Pointer weights,
    Pointer indices,
    int rows,
    int experts,
    int k,
    float scale) {
  start_successor();
  wait_for_predecessor();
  const int64_t row = row_of_warp();
  if (row >= rows) {
    return;
  }
  const T* from = logits.as<T>() + row * experts;
  float most = -infinity();
  float total = 0;
  if (!sigmoid) {
    for (int i = lane_index(); i < experts; i += 32) {
      most = fmaxf(most, to_float(from[i]));
    }
    most = warp_max(most);
    for (int i = lane_index(); i < experts; i += 32) {
      total += expf(to_float(from[i]) - most);
    }
    total = warp_sum(total);
  }
  auto score = [&](int i) {
    const float x = to_float(from[i]);
    return sigmoid ? 1 / (1 + expf(-x)) : expf(x - most) / total;
  };
  uint64_t last = ~uint64_t{0};
  float sum = 0;
  for (int pass = normalises ? 0 : 1; pass < 2; ++pass) {
    last = ~uint64_t{0};
    for (int n = 0; n < k; ++n) {
      uint64_t best = 0;
      for (int i = lane_index(); i < experts; i += 32) {
        const uint64_t order = order_of(score(i) + (biased ? bias.as<float>()[i] : 0.0f), i);
        best = order < last && order > best ? order : best;
      }
      last = warp_first(best);
      const int chosen = index_in(last);
      if (pass == 0) {
        sum += score(chosen);
      } else if (lane_index() == 0) {
        weights.as<T>()[row * k + n] = from_float<T>(score(chosen) * (normalises ? scale / sum : scale));
        indices.as<uint32_t>()[row * k + n] = static_cast<uint32_t>(chosen);
      }
    }
  }
}
