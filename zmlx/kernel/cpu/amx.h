// zmlx/kernel/cpu/amx.h: AMX's tile registers. Included with the flags of the instruction set
// alone.
#pragma once

#include <cstdint>

namespace zmlx::cpu {
// Each file that includes this has flags, so copies, of its own.
namespace {

constexpr int64_t tile_rows = 16;
constexpr int64_t tile_bytes = 64; // of a row

// Instructions rather than the compiler's own functions: those of GCC 12 do not say which memory
// they read. A register's number is part of the text.

template <int T>
[[gnu::always_inline]] inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

/// Rows every `stride` bytes.
template <int T>
[[gnu::always_inline]] inline void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
[[gnu::always_inline]] inline void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}

/// Sums += the products of rows of pairs X and columns of pairs W, in bf16.
template <int Sums, int X, int W>
[[gnu::always_inline]] inline void multiply_bf16_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sums), "i"(X), "i"(W));
}

/// This thread's use of the tile registers, given back at the end: a thread that holds none costs
/// the system nothing when it is switched. Registers 0 and 1 hold sums of x in 4, 2 and 3 of x in
/// 5; 6 and 7 hold weights.
class TileScope {
 public:
  TileScope() = default;
  ~TileScope() {
    if (config_.rows[0]) {
      asm volatile("tilerelease" : : : "memory");
    }
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  /// Rows of x in 4 and in 5, at least 1 each.
  void set_rows(int64_t first, int64_t second) {
    if (config_.rows[4] == first && config_.rows[5] == second) {
      return;
    }
    for (int t = 0; t < 8; ++t) {
      config_.row_bytes[t] = tile_bytes;
      config_.rows[t] = tile_rows;
    }
    config_.rows[0] = config_.rows[1] = config_.rows[4] = static_cast<uint8_t>(first);
    config_.rows[2] = config_.rows[3] = config_.rows[5] = static_cast<uint8_t>(second);
    asm volatile("ldtilecfg %0" : : "m"(config_));
  }

 private:
  struct alignas(64) {
    uint8_t palette = 1;
    uint8_t start = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config_;
};

} // namespace
} // namespace zmlx::cpu
