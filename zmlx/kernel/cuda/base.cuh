// zmlx/kernel/cuda/base.cuh: types, memory, warp and tensor core primitives of the CUDA kernels. Needs no header of the CUDA
// toolkit, so that NVRTC alone compiles it; with ZMLX_HOST it is ordinary C++ behind tests/cpp/cuda_host.h.
#pragma once

#ifndef ZMLX_HOST

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
using size_t = unsigned long;

#define ZMLX_DEVICE __device__ __forceinline__

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

#endif

/// A tensor's address: fixed when the launch was built, or read from device memory when it runs.
struct Pointer {
  const void* address;
  const void* const* slot;

  template <typename T>
  ZMLX_DEVICE T* as() const {
    return static_cast<T*>(const_cast<void*>(slot ? *slot : address));
  }
};

/// An extent that may differ from run to run, like a Pointer.
struct Extent {
  int64_t value;
  const int64_t* slot;

  ZMLX_DEVICE int64_t get() const {
    return slot ? *slot : value;
  }
};

#ifndef ZMLX_HOST

/// Everything that earlier launches wrote is visible after this. With programmatic dependent launch a kernel starts before its
/// predecessor ends: until this call it may read only weights, and write nothing.
ZMLX_DEVICE void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// From here on the next launch may start; call it early, when this block has its loads under way.
ZMLX_DEVICE void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

ZMLX_DEVICE float to_float(float x) {
  return x;
}
ZMLX_DEVICE float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
ZMLX_DEVICE float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

/// Rounds to nearest, ties to even.
template <typename T>
ZMLX_DEVICE T from_float(float x);
template <>
ZMLX_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
ZMLX_DEVICE bf16 from_float<bf16>(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <>
ZMLX_DEVICE f16 from_float<f16>(float x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

/// Two values in one register, `low` in the low half.
template <typename T>
ZMLX_DEVICE uint32_t pack2(float low, float high);
template <>
ZMLX_DEVICE uint32_t pack2<bf16>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
template <>
ZMLX_DEVICE uint32_t pack2<f16>(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}

/// a * b + c on two halves of a register, each rounded once.
template <typename T>
ZMLX_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c);
template <>
ZMLX_DEVICE uint32_t fma2<bf16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <>
ZMLX_DEVICE uint32_t fma2<f16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// (a & mask) | bits in one instruction.
template <uint32_t mask, uint32_t bits>
ZMLX_DEVICE uint32_t and_or(uint32_t a) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "n"(mask), "n"(bits));
  return d;
}

/// Four bytes of a (numbers 0 to 3) and b (4 to 7): byte i is the one whose number is in bits 4i to 4i + 2 of `numbers`.
ZMLX_DEVICE uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t numbers) {
  return __byte_perm(a, b, numbers);
}

/// Reads of memory that no launch writes while this one runs (weights): not kept in L1.
ZMLX_DEVICE uint4 load_once16(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
ZMLX_DEVICE uint2 load_once8(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
ZMLX_DEVICE uint32_t load_once4(const void* p) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

/// This block's dynamic shared memory, 16-byte aligned.
ZMLX_DEVICE uint8_t* dynamic_shared() {
  extern __shared__ uint4 zmlx_dynamic_shared[];
  return reinterpret_cast<uint8_t*>(zmlx_dynamic_shared);
}

ZMLX_DEVICE void sync_block() {
  __syncthreads();
}
ZMLX_DEVICE void sync_warp() {
  __syncwarp();
}
ZMLX_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x & 31);
}
ZMLX_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x >> 5);
}

/// Values of other lanes; all 32 lanes must call.
template <typename T>
ZMLX_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(0xFFFFFFFFu, value, lane);
}
template <typename T>
ZMLX_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}
template <typename T>
ZMLX_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(0xFFFFFFFFu, value, delta);
}
template <typename T>
ZMLX_DEVICE T shuffle_down(T value, int delta) {
  return __shfl_down_sync(0xFFFFFFFFu, value, delta);
}
/// The largest and the smallest of all lanes.
ZMLX_DEVICE uint32_t warp_max(uint32_t x) {
  return __reduce_max_sync(0xFFFFFFFFu, x);
}
ZMLX_DEVICE uint32_t warp_min(uint32_t x) {
  return __reduce_min_sync(0xFFFFFFFFu, x);
}
/// A bit a lane whose `flag` is set.
ZMLX_DEVICE uint32_t vote(bool flag) {
  return __ballot_sync(0xFFFFFFFFu, flag);
}

ZMLX_DEVICE int bit_count(uint32_t x) {
  return __popc(x);
}
ZMLX_DEVICE float bits_to_float(uint32_t x) {
  return __uint_as_float(x);
}
ZMLX_DEVICE uint32_t float_to_bits(float x) {
  return __float_as_uint(x);
}

/// Returns the old value.
ZMLX_DEVICE int atomic_add(int* p, int value) {
  return atomicAdd(p, value);
}
ZMLX_DEVICE float atomic_add(float* p, float value) {
  return atomicAdd(p, value);
}

/// What this thread wrote is seen by others before what it writes next.
ZMLX_DEVICE void fence() {
  __threadfence();
}

/// Reads what other blocks of this launch wrote: not from L1.
ZMLX_DEVICE float load_fresh(const float* p) {
  return __ldcg(p);
}
ZMLX_DEVICE uint4 load_fresh(const uint4* p) {
  return __ldcg(p);
}

/// Copies 16 bytes from global to shared memory without waiting; zeros where `valid` is not set.
ZMLX_DEVICE void copy_async16(void* shared, const void* global, bool valid = true) {
  auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
ZMLX_DEVICE void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `pending` groups of this thread's copies are under way.
template <int pending>
ZMLX_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// Four 8x8 tiles of 16-bit values from shared memory: lane i gives the address of row i % 8 of tile i / 8 (16 bytes), and gets
/// of tile t the elements (lane / 4, 2 * (lane % 4)) and the next in d[t].
ZMLX_DEVICE void load_tiles(uint32_t (&d)[4], const void* shared) {
  auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
}
/// The same with every tile transposed.
ZMLX_DEVICE void load_tiles_transposed(uint32_t (&d)[4], const void* shared) {
  auto from = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(from)
               : "memory");
}

/// d += a @ b for a 16x16 (row-major) and b 16x8 (column-major) of T. With g = lane / 4 and t = lane % 4: a[0] holds (g, 2t),
/// (g, 2t + 1); a[1] row g + 8; a[2] columns + 8; a[3] both. b[0] holds (2t, g), (2t + 1, g); b[1] rows + 8. d[0], d[1] hold
/// (g, 2t), (g, 2t + 1); d[2], d[3] row g + 8.
template <typename T>
ZMLX_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
ZMLX_DEVICE void multiply_add<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
ZMLX_DEVICE void multiply_add<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Within 2 units in the last place; for softmax and activations.
ZMLX_DEVICE float fast_exp(float x) {
  return __expf(x);
}
ZMLX_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
ZMLX_DEVICE float inverse_sqrt(float x) {
  return rsqrtf(x);
}
ZMLX_DEVICE float divide(float a, float b) {
  return __fdividef(a, b);
}
ZMLX_DEVICE float infinity() {
  return __uint_as_float(0x7F800000u);
}

#endif // ZMLX_HOST

/// Whether this block is the last of `blocks` to come here; it then sees (by load_fresh) what all of them wrote before. The
/// counter is zero again afterwards. All threads of the block call it.
ZMLX_DEVICE bool is_last_block(int* counter, int blocks) {
  __shared__ int before;
  fence();
  sync_block();
  if (threadIdx.x == 0) {
    before = atomic_add(counter, 1);
    if (before == blocks - 1) {
      *counter = 0;
    }
  }
  sync_block();
  fence();
  return before == blocks - 1;
}

/// Sum and maximum over a warp's lanes, the same bits in every lane.
ZMLX_DEVICE float warp_sum(float x) {
  for (int i = 16; i > 0; i /= 2) {
    x += shuffle_xor(x, i);
  }
  return x;
}
ZMLX_DEVICE float warp_max(float x) {
  for (int i = 16; i > 0; i /= 2) {
    float y = shuffle_xor(x, i);
    x = y > x ? y : x;
  }
  return x;
}
