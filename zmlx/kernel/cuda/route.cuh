// zmlx/kernel/cuda/route.cuh: rows to and from places that numbers name: scatter-add, and a mixture of experts' dispatch and
// combine.
#pragma once

#include "zmlx/kernel/cuda/elements.cuh"
#include "zmlx/kernel/cuda/units.cuh"

/// A block has 256 columns of one row of the table. It finds the row's updates among all, in order: sums have the same bits each
/// time. There is nobody to tell about an index outside the table: its update is left out.
template <typename T, typename Index, bool onto>
__global__ void __launch_bounds__(256)
    scatter_add(Pointer indices, Pointer updates, Pointer table, Pointer out, int count, int rows, int width) {
  start_successor();
  wait_for_predecessor();
  __shared__ uint32_t found[8];
  const int64_t row = blockIdx.x;
  const int column = static_cast<int>(blockIdx.y * 256 + threadIdx.x);
  const bool inside = column < width;
  float sum = onto && inside ? to_float(table.as<T>()[row * width + column]) : 0.0f;
  for (int first = 0; first < count; first += 256) {
    const int mine = first + static_cast<int>(threadIdx.x);
    int64_t index = mine < count ? static_cast<int64_t>(indices.as<Index>()[mine]) : rows;
    index += index < 0 ? rows : 0;
    const uint32_t hits = vote(index == row);
    sync_block(); // the last piece's hits have been read
    if (lane_index() == 0) {
      found[warp_index()] = hits;
    }
    sync_block();
    for (int w = 0; w < 8; ++w) {
      for (uint32_t left = found[w]; left; left &= left - 1) {
        const int64_t i = first + 32 * w + bit_count((left & (0u - left)) - 1);
        sum += inside ? to_float(updates.as<T>()[i * width + column]) : 0.0f;
      }
    }
  }
  if (inside) {
    out.as<T>()[row * width + column] = from_float<T>(sum);
  }
}

/// The pairs of a token and an expert in order of experts: a thread counts the pairs that come before its own.
__global__ void __launch_bounds__(256) sort_pairs(Pointer indices, Pointer experts, Pointer order, int pairs) {
  start_successor();
  wait_for_predecessor();
  __shared__ uint32_t piece[256];
  const auto mine = static_cast<int>(thread_number());
  const uint32_t* all = indices.as<uint32_t>();
  const uint32_t expert = mine < pairs ? all[mine] : 0;
  int place = 0;
  for (int first = 0; first < pairs; first += 256) {
    const int at = first + static_cast<int>(threadIdx.x);
    sync_block();
    piece[threadIdx.x] = at < pairs ? all[at] : 0;
    sync_block();
    const int count = pairs - first < 256 ? pairs - first : 256;
    for (int i = 0; i < count; ++i) {
      place += piece[i] < expert || (piece[i] == expert && first + i < mine) ? 1 : 0;
    }
  }
  if (mine < pairs) {
    experts.as<uint32_t>()[place] = expert;
    order.as<uint32_t>()[place] = static_cast<uint32_t>(mine);
  }
}

/// The tokens' rows in the pairs' order; a thread 16 bytes.
template <typename T>
__global__ void __launch_bounds__(256) dispatch_rows(Pointer x, Pointer order, Pointer out, int pairs, int chosen, int width) {
  start_successor();
  wait_for_predecessor();
  constexpr int size = Pack<T>::size;
  const int packs = (width + size - 1) / size;
  const int64_t row = thread_number() / packs;
  const int i = static_cast<int>(thread_number() % packs) * size;
  if (row < pairs) {
    const int64_t token = order.as<uint32_t>()[row] / static_cast<uint32_t>(chosen);
    store_pack(load_pack(x.as<T>() + token * width + i, width - i), out.as<T>() + row * width + i, width - i);
  }
}

/// places[order[i]] = i.
__global__ void __launch_bounds__(256) invert_order(Pointer order, Pointer places, int pairs) {
  start_successor();
  wait_for_predecessor();
  const int64_t i = thread_number();
  if (i < pairs && order.as<uint32_t>()[i] < static_cast<uint32_t>(pairs)) {
    places.as<uint32_t>()[order.as<uint32_t>()[i]] = static_cast<uint32_t>(i);
  }
}

/// The weighted sums of a token's rows; a thread 16 bytes of a token. There is nobody to tell about an order that leaves a pair
/// out: its token is NaN.
template <typename T, typename Weight, bool sorted, bool residual>
__global__ void __launch_bounds__(256) combine_rows(
    Pointer rows,
    Pointer weights,
    Pointer order,
    Pointer places,
    Pointer after,
    Pointer out,
    int tokens,
    int chosen,
    int width) {
  start_successor();
  wait_for_predecessor();
  constexpr int size = Pack<T>::size;
  const int packs = (width + size - 1) / size;
  const int64_t token = thread_number() / packs;
  const int i = static_cast<int>(thread_number() % packs) * size;
  if (token >= tokens) {
    return;
  }
  const int64_t pairs = static_cast<int64_t>(tokens) * chosen;
  float sums[size] = {};
  for (int64_t pair = token * chosen; pair < (token + 1) * chosen; ++pair) {
    float weight = to_float(weights.as<Weight>()[pair]);
    int64_t place = pair;
    if (sorted) {
      place = places.as<uint32_t>()[pair];
      const bool valid = place < pairs && order.as<uint32_t>()[place] == static_cast<uint32_t>(pair);
      place = valid ? place : 0;
      weight = valid ? weight : not_a_number();
    }
    const Pack<T> row = load_pack(rows.as<T>() + place * width + i, width - i);
    for (int j = 0; j < size; ++j) {
      sums[j] = fmaf(weight, to_float(row.v[j]), sums[j]);
    }
  }
  Pack<T> y;
  if (residual) {
    y = load_pack(after.as<T>() + token * width + i, width - i);
  }
  for (int j = 0; j < size; ++j) {
    y.v[j] = from_float<T>(residual ? sums[j] + to_float(y.v[j]) : sums[j]);
  }
  store_pack(y, out.as<T>() + token * width + i, width - i);
}
