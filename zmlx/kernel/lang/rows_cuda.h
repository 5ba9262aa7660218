// zmlx/kernel/lang/rows_cuda.h: what row kernels build on in CUDA, behind math.h: a row is a
// warp's, or a block's.

/// x of all threads of a row combined, in every thread.
template <typename Op, int Threads, typename T>
ZMLX_INLINE T reduced(T x, T neutral) {
  for (int m = 16; m > 0; m /= 2) {
    x = Op::of(x, shuffle_xor(x, m));
  }
  if constexpr (Threads > 32) {
    __shared__ T parts[32];
    sync_block(); // what an earlier reduction left there has been read
    if (lane_index() == 0) {
      parts[warp_index()] = x;
    }
    sync_block();
    x = lane_index() < Threads / 32 ? parts[lane_index()] : neutral;
    for (int m = 16; m > 0; m /= 2) {
      x = Op::of(x, shuffle_xor(x, m));
    }
  }
  return x;
}
