// zmlx/kernel/cuda/elements.cuh: dropout and gathered rows plus an array, 16 bytes a thread and access.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// 16 bytes of T, or fewer elements where memory does not allow it.
template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T v[size];
};

ZMLX_DEVICE bool in_packs(const void* p) {
  return (reinterpret_cast<uint64_t>(p) & 15) == 0;
}

/// The first `count` elements at p: all in one access where p is at a multiple of 16 bytes.
template <typename T>
ZMLX_DEVICE Pack<T> load_pack(const T* p, int count) {
  if (count >= Pack<T>::size && in_packs(p)) {
    return *reinterpret_cast<const Pack<T>*>(p);
  }
  Pack<T> pack{};
  for (int j = 0; j < Pack<T>::size; ++j) {
    if (j < count) {
      pack.v[j] = p[j];
    }
  }
  return pack;
}
template <typename T>
ZMLX_DEVICE void store_pack(const Pack<T>& pack, T* p, int count) {
  if (count >= Pack<T>::size && in_packs(p)) {
    *reinterpret_cast<Pack<T>*>(p) = pack;
    return;
  }
  for (int j = 0; j < Pack<T>::size; ++j) {
    if (j < count) {
      p[j] = pack.v[j];
    }
  }
}

ZMLX_DEVICE uint32_t turn_left(uint32_t x, int distance) {
  return (x << distance) | (x >> (32 - distance));
}

/// Threefry-2x32 with 20 rounds (Salmon et al., 2011) of the counters (a, b), in place.
ZMLX_DEVICE void threefry(uint32_t k0, uint32_t k1, uint32_t& a, uint32_t& b) {
  const uint32_t keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
  const int distances[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  a += keys[0];
  b += keys[1];
#pragma unroll
  for (int i = 0; i < 5; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      a += b;
      b = turn_left(b, distances[i % 2][j]) ^ a;
    }
    a += keys[(i + 1) % 3];
    b += keys[(i + 2) % 3] + static_cast<uint32_t>(i) + 1;
  }
}

/// x / (1 - p) where the word's upper 24 bits, as a fraction, are at least p, else 0. A thread has a pack of the first half of
/// the array and its partners in the second: word i comes from the counters (i, i + pairs), the middle one of an odd number from
/// (n / 2, 0).
template <typename T>
__global__ void __launch_bounds__(256) dropout(Pointer x, Pointer key, Pointer p, Pointer out, int n) {
  start_successor();
  wait_for_predecessor();
  constexpr int size = Pack<T>::size;
  const int pairs = n / 2 + n % 2;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * size;
  if (first >= pairs) {
    return;
  }
  const int low = static_cast<int>(pairs - first < size ? pairs - first : size);
  const int high = static_cast<int>(n / 2 - first < size ? n / 2 - first : size);
  const uint32_t* k = key.as<uint32_t>();
  const float chance = *p.as<float>();
  const float scale = 1 / (1 - chance);
  Pack<T> a = load_pack(x.as<T>() + first, low);
  Pack<T> b = load_pack(x.as<T>() + first + pairs, high);
  for (int j = 0; j < size; ++j) {
    uint32_t word[2] = {static_cast<uint32_t>(first) + j, j < high ? static_cast<uint32_t>(first + pairs) + j : 0};
    threefry(k[0], k[1], word[0], word[1]);
    a.v[j] = from_float<T>(static_cast<float>(word[0] >> 8) * 0x1p-24f >= chance ? to_float(a.v[j]) * scale : 0.0f);
    b.v[j] = from_float<T>(static_cast<float>(word[1] >> 8) * 0x1p-24f >= chance ? to_float(b.v[j]) * scale : 0.0f);
  }
  store_pack(a, out.as<T>() + first, low);
  store_pack(b, out.as<T>() + first + pairs, high);
}

/// out[i] = table[indices[i]] + x[i] for rows of `width`; blocks are rows, grid.y pieces of 256 packs. There is nobody to tell
/// about an index beyond the table: its row is NaN.
template <typename T, typename Index>
__global__ void __launch_bounds__(256)
    gather_add(Pointer table, Pointer indices, Pointer x, Pointer out, int rows, int width) {
  start_successor();
  wait_for_predecessor();
  constexpr int size = Pack<T>::size;
  const int64_t at = blockIdx.x;
  const int i = (static_cast<int>(blockIdx.y) * 256 + static_cast<int>(threadIdx.x)) * size;
  if (i >= width) {
    return;
  }
  int64_t row = static_cast<int64_t>(indices.as<Index>()[at]);
  row += row < 0 ? rows : 0;
  const bool valid = row >= 0 && row < rows;
  const Pack<T> a = load_pack(table.as<T>() + (valid ? row : 0) * width + i, width - i);
  const Pack<T> b = load_pack(x.as<T>() + at * width + i, width - i);
  Pack<T> sum;
  for (int j = 0; j < size; ++j) {
    sum.v[j] = from_float<T>(valid ? to_float(a.v[j]) + to_float(b.v[j]) : bits_to_float(0x7FC00000u));
  }
  store_pack(sum, out.as<T>() + at * width + i, width - i);
}
