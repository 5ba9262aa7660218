// zmlx/kernel/cpu/targets.h: instruction sets that Highway kernels are built for. Include it before
// any Highway header.
#pragma once

// AVX-512, AVX2 or plain emulation on x86, Neon on Arm: each further set costs a copy of every
// kernel, and vectors of unknown length (SVE) cannot be held in arrays. What is newer than
// AVX-512's first sets (for Zen 4, Sapphire Rapids, AVX10) is given by its bits: Highway 1.0.3 has
// no names for it.
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS                                                              \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_AVX3_DL | \
   (15LL << 3))
#endif
