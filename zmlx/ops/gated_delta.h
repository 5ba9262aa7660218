// zmlx/ops/gated_delta.h: sizes of one call of the gated delta rule.
#pragma once

#include <cstdint>

namespace zmlx {

struct GatedDelta {
  static constexpr int64_t max_key = 512; // widest key
  static constexpr int64_t block = 16; // rows of the state that share a token's converted keys

  int64_t batch;
  int64_t tokens;
  int64_t k_heads;
  int64_t v_heads;
  int64_t key;
  int64_t value;
  bool wide_gate; // a factor for each element of a key
  bool masked;

  int64_t blocks() const {
    return (value + block - 1) / block;
  }
};

} // namespace zmlx
