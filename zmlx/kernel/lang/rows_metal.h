// zmlx/kernel/lang/rows_metal.h: what row kernels build on in Metal's language, behind math.h: a
// row is a threadgroup's.

template <typename T>
ZMLX_INLINE T of_lane(T x, ushort mask) {
  return simd_shuffle_xor(x, mask);
}
// Lanes exchange 32 bits at a time.
ZMLX_INLINE int64_t of_lane(int64_t x, ushort mask) {
  return as_type<int64_t>(simd_shuffle_xor(as_type<uint2>(x), mask));
}
ZMLX_INLINE uint64_t of_lane(uint64_t x, ushort mask) {
  return as_type<uint64_t>(simd_shuffle_xor(as_type<uint2>(x), mask));
}

/// x of all threads of a row combined, in every thread; `parts` holds 32 values.
template <typename Op, typename T>
ZMLX_INLINE T reduced(T x, T neutral, threadgroup T* parts, uint lane, uint group, uint groups) {
  for (ushort m = 16; m > 0; m /= 2) {
    x = Op::of(x, of_lane(x, m));
  }
  if (groups > 1) {
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    if (lane == 0) {
      parts[group] = x;
    }
    threadgroup_barrier(metal::mem_flags::mem_threadgroup);
    x = lane < groups ? parts[lane] : neutral;
    for (ushort m = 16; m > 0; m /= 2) {
      x = Op::of(x, of_lane(x, m));
    }
  }
  return x;
}
