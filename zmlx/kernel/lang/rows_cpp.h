// zmlx/kernel/lang/rows_cpp.h: what row kernels build on in C++, behind math.h: reductions in lanes
// that the compiler vectorises.

constexpr int64_t lanes = 64; // partial results of a reduction
constexpr int64_t chunk = 4096; // elements that lanes take up before they are added in double

/// f(begin, count) over [begin, end): whole blocks of lanes, of a count that the compiler knows,
/// then the rest.
template <typename F>
ZMLX_INLINE void each_block(int64_t begin, int64_t end, F f) {
  for (; begin + lanes <= end; begin += lanes) {
    f(begin, lanes);
  }
  if (begin < end) {
    f(begin, end - begin);
  }
}

template <typename T>
ZMLX_INLINE void fill(T* p, T value) {
  for (int64_t l = 0; l < lanes; ++l) {
    p[l] = value;
  }
}

template <typename Op, int64_t width = lanes / 2, typename T>
ZMLX_INLINE T folded(T* p) {
#pragma omp simd
  for (int64_t l = 0; l < width; ++l) {
    p[l] = Op::of(p[l], p[l + width]);
  }
  if constexpr (width > 1) {
    return folded<Op, width / 2>(p);
  } else {
    return p[0];
  }
}

template <typename T>
ZMLX_INLINE T* at(const void* p, int64_t bytes) {
  return static_cast<T*>(
      const_cast<void*>(static_cast<const void*>(static_cast<const char*>(p) + bytes)));
}
