// zmlx/kernel/cpu/attention.h: how attention is cut into pieces of work, and the memory they share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "zmlx/runtime/tensor.h"

namespace zmlx::cpu {

enum class MaskKind : uint8_t { none, causal, array };

/// Rows are the (token, query head) pairs that share a KV head, tokens first. A piece of work is a
/// block of rows against a chunk of the keys that they see; nothing here depends on the team.
struct Attention {
  static constexpr int64_t max_width = 256; // widest head
  static constexpr int64_t few_rows = 8; // up to here scores are dot products, row by row
  static constexpr int64_t max_rows = 64; // rows of a block: they lie in the vector lanes
  static constexpr int64_t tile = 64; // keys between two updates of the running maximum
  static constexpr int64_t min_chunk = 2 * tile;
  static constexpr int64_t wanted_pieces = 64;

  float scale = 1;
  MaskKind mask = MaskKind::none;
  int64_t window = 0;
  bool padded = false; // sequences begin at keys of their own
  bool heads_last = false;

  int64_t batch = 0;
  int64_t q_heads = 0;
  int64_t kv_heads = 0;
  int64_t tokens = 0;
  int64_t width = 0;
  int64_t value_width = 0;

  int64_t group() const {
    return q_heads / kv_heads;
  }
  int64_t rows() const {
    return group() * tokens;
  }
  int64_t block_rows() const {
    return std::min(rows(), max_rows);
  }
  int64_t blocks() const {
    return rows() ? (rows() + max_rows - 1) / max_rows : 0;
  }
  int64_t items() const {
    return batch * kv_heads * blocks();
  }
  /// The most chunks that a block's keys are cut into.
  int64_t splits() const {
    return std::max<int64_t>(1, wanted_pieces / std::max<int64_t>(1, items()));
  }
  /// Floats of one piece's unnormalised result: rows, then each row's maximum, then its sum.
  int64_t part_floats() const {
    return block_rows() * (value_width + 2);
  }
  size_t scratch() const {
    return splits() > 1 ? static_cast<size_t>(items() * splits() * part_floats()) * sizeof(float)
                        : 0;
  }
};

} // namespace zmlx::cpu
