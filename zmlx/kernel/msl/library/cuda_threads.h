// zmlx/kernel/msl/library/cuda_threads.h: a kernel's threads in CUDA: threadgroups are blocks of
// one axis, simd-groups are warps. Behind integers.h.

/// T as the word of 32 or 64 bits that the hardware's atomics take.
template <typename T>
struct ZmlxAtomic {
  using Word = conditional_t<sizeof(T) == 8, unsigned long long, unsigned int>;

  static zmlx_inline T of(Word w) {
    T x;
    zmlx_copy(&x, &w, sizeof(T));
    return x;
  }
  static zmlx_inline Word word(T x) {
    Word w = 0;
    zmlx_copy(&w, &x, sizeof(T));
    return w;
  }
  static zmlx_inline T load(const volatile T* at) {
    return *at;
  }
  static zmlx_inline T exchange(volatile T* at, T x) {
    return of(::atomicExch(reinterpret_cast<Word*>(const_cast<T*>(at)), word(x)));
  }
  static zmlx_inline bool compare_exchange(volatile T* at, T& expected, T x) {
    Word before = ::atomicCAS(reinterpret_cast<Word*>(const_cast<T*>(at)), word(expected), word(x));
    bool same = before == word(expected);
    expected = of(before);
    return same;
  }
  static zmlx_inline T add(volatile T* at, T x) {
    if constexpr (is_same_v<T, float>) {
      return ::atomicAdd(const_cast<float*>(at), x);
    } else {
      return of(::atomicAdd(reinterpret_cast<Word*>(const_cast<T*>(at)), word(x)));
    }
  }
};
zmlx_inline void zmlx_fence() {
  ::__threadfence();
}

zmlx_inline uint zmlx_lane() {
  return threadIdx.x % 32;
}
/// x of a lane of those in `mask`; only they may call it.
template <typename T>
zmlx_inline T zmlx_from_lane(uint mask, T x, uint lane) {
  uint words[(sizeof(T) + 3) / 4] = {};
  zmlx_copy(words, &x, sizeof(T));
  for (uint i = 0; i < (sizeof(T) + 3) / 4; ++i) {
    words[i] = ::__shfl_sync(mask, words[i], static_cast<int>(lane));
  }
  zmlx_copy(&x, words, sizeof(T));
  return x;
}
template <typename Op, uint width, typename T>
zmlx_inline T zmlx_reduce(T x, uint) {
  uint mask = ::__activemask();
  if (mask == 0xFFFFFFFFu) {
    for (uint step = 1; step < width; step *= 2) {
      x = Op()(x, zmlx_from_lane(mask, x, zmlx_lane() ^ step));
    }
    return x;
  }
  // Some lanes are missing: each of the others in turn.
  T sum = x;
  bool any = false;
  for (uint lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) {
      T other = zmlx_from_lane(mask, x, lane);
      if (lane / width == zmlx_lane() / width) {
        sum = any ? Op()(sum, other) : other;
        any = true;
      }
    }
  }
  return sum;
}
template <typename Op, bool inclusive, typename T>
zmlx_inline T zmlx_scan(T x, T neutral, uint) {
  uint mask = ::__activemask();
  T sum = neutral;
  bool any = false;
  for (uint lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) {
      T other = zmlx_from_lane(mask, x, lane);
      if (lane < zmlx_lane() || (inclusive && lane == zmlx_lane())) {
        sum = any ? Op()(sum, other) : other;
        any = true;
      }
    }
  }
  return sum;
}
template <uint width, typename T>
zmlx_inline T zmlx_exchange(T x, uint from, uint) {
  uint mask = ::__activemask();
  uint lane = zmlx_lane() / width * width + from;
  bool there = from < width && (mask >> (lane % 32) & 1);
  return zmlx_from_lane(mask, x, there ? lane : zmlx_lane());
}
template <typename F>
zmlx_inline void threadgroup_barrier(F) {
  ::__syncthreads();
}
template <typename F>
zmlx_inline void simdgroup_barrier(F) {
  ::__syncwarp(::__activemask());
}

/// Parameters as the launch gives them: runtime/cuda/apply.cpp.
struct Pointer {
  void* address;
  void* const* slot;
};
struct Extent {
  int64_t value;
  const int64_t* slot;
};

/// Where a thread is.
struct Place {
  uint3 grid, nominal, group, groups, actual, inside;

  /// False for threads beyond the grid.
  zmlx_inline bool find(uint3 whole, uint3 block) {
    grid = whole;
    nominal = block;
    groups = (grid + nominal - 1u) / nominal;
    uint b = blockIdx.x;
    group = uint3(b % groups.x, b / groups.x % groups.y, b / groups.x / groups.y);
    actual = min(nominal, grid - group * nominal);
    uint i = threadIdx.x;
    inside = uint3(i % actual.x, i / actual.x % actual.y, i / actual.x / actual.y);
    return i < count();
  }
  zmlx_inline uint index() const {
    return threadIdx.x;
  }
  zmlx_inline uint count() const {
    return actual.x * actual.y * actual.z;
  }
  zmlx_inline uint3 position() const {
    return group * nominal + inside;
  }
};
