// zmlx/kernel/cuda/bits.cuh: bits from bools and back; a thread a byte of bits.
#pragma once

#include "zmlx/kernel/cuda/units.cuh"

__global__ void __launch_bounds__(256) pack_bits(Pointer x, Pointer out, Extent count) {
  start_successor();
  wait_for_predecessor();
  const int64_t first = 8 * thread_number();
  if (first >= count.get()) {
    return;
  }
  uint32_t byte = 0;
  for (int j = 0; j < 8; ++j) {
    byte |= first + j < count.get() && x.as<uint8_t>()[first + j] ? 1u << j : 0u;
  }
  out.as<uint8_t>()[thread_number()] = static_cast<uint8_t>(byte);
}

__global__ void __launch_bounds__(256) unpack_bits(Pointer x, Pointer out, Extent count) {
  start_successor();
  wait_for_predecessor();
  const int64_t first = 8 * thread_number();
  for (int j = 0; j < 8; ++j) {
    if (first + j < count.get()) {
      out.as<uint8_t>()[first + j] = x.as<uint8_t>()[thread_number()] >> j & 1;
    }
  }
}
