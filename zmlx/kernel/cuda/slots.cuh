// zmlx/kernel/cuda/slots.cuh: fills a run's slots from the launch's own parameters.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

template <int count>
struct SlotValues {
  uint64_t value[count];
};

/// to[i] = values.value[i] for i < used; one thread each.
template <int count>
__global__ void write_slots(Pointer to, int used, SlotValues<count> values) {
  wait_for_predecessor();
  start_successor();
  int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < used) {
    to.as<uint64_t>()[i] = values.value[i];
  }
}
