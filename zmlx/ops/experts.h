// zmlx/ops/experts.h: the two halves of a mixture of experts on the CPU, over the pairs of a token
// and one of its experts.
#pragma once

#include <algorithm>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/ops/weight.h"

namespace zmlx {

/// Sorted pairs that one expert has.
struct Segment {
  int64_t expert;
  int64_t begin;
  int64_t end;
};

/// All pairs sorted by expert, a token's pairs in order; `token[i]` and `pair[i]` belong to
/// position i.
struct SortedPairs {
  Segment* segments;
  int64_t count = 0;
  uint32_t* token;
  uint32_t* pair;
};

/// The pairs of one call.
struct Pairs {
  // A decode step has few pairs: each member sorts them for itself, and a block of outputs fits a
  // member's stack.
  static constexpr int64_t few = 64;
  struct Few {
    Segment segments[few];
    uint32_t token[few];
    uint32_t pair[few];
  };

  const char* op; // for errors
  int64_t tokens;
  int64_t chosen;
  int64_t experts;

  int64_t count() const {
    return tokens * chosen;
  }
  /// Pairs of an expert, on average.
  int64_t rows_of_an_expert() const {
    return count() / std::max<int64_t>(experts, 1);
  }
  bool are_few() const {
    return count() <= few;
  }
  /// Bytes of shared scratch that sort() needs.
  size_t scratch() const;
  /// Sorts into `own` or, with a barrier, into `scratch`. An index past the experts is an error.
  SortedPairs sort(const uint32_t* indices, std::byte* scratch, Few& own, Member& member) const;
};

/// silu(gate) * up of every pair, for a stack of experts [E, inner, k]; `gate` and `up` are the
/// inputs where they begin.
struct ExpertGate {
  cpu::Matmul matmul;
  WeightKind kind;
  size_t gate;
  size_t up;
  int64_t inner;
  bool exact;
  bool sorted; // rows are written in sorted order, else in that of the pairs

  /// Row i of `x` is token i. With a barrier at the end.
  void run(
      const Call& call,
      const Pairs& pairs,
      const SortedPairs& s,
      const cpu::Rows& x,
      std::byte* to,
      Member& member) const;
};

/// The sum of each token's experts, weighted, for a stack [E, width, k], with a residual after.
/// `down` is the input where the stack begins, `weights` that of the pairs' weights; the residual
/// is the last.
struct ExpertSum {
  cpu::Matmul matmul;
  WeightKind kind;
  size_t down;
  size_t weights;
  int64_t width;
  bool residual;
  bool exact;

  /// Bytes of shared scratch for run().
  size_t scratch(const Pairs& pairs) const;
  /// Row i of `hidden` is sorted pair i.
  void run(
      const Call& call,
      const Pairs& pairs,
      const SortedPairs& s,
      const cpu::Rows& hidden,
      std::byte* scratch,
      Member& member) const;
};

/// Bytes that one run reads and writes, when of the stacks in inputs [first, last) only the chosen
/// experts are read: as many as there are pairs, at most all.
size_t
experts_traffic(const Types& in, const Types& out, size_t first, size_t last, const Type& indices);

/// Adds gate and up [experts, inner, width], down [experts, width, inner] and, if there is one, the
/// residual, shaped as x [.., width], for cases.
void push_random_experts(
    Arrays& in,
    const mx::Shape& x,
    int experts,
    int inner,
    const WeightKind& kind,
    bool residual,
    mx::Dtype dtype);

/// Inputs x, the indices of `chosen` different experts and their weights, for cases.
Arrays random_routing(mx::Shape x, int experts, int chosen, mx::Dtype dtype);

} // namespace zmlx
