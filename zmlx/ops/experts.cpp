// zmlx/ops/experts.cpp: sorts pairs by expert, and walks the experts that were chosen.
#include "zmlx/ops/experts.h"

#include <algorithm>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr int64_t buffer_floats = 8192;
constexpr int64_t sum_outputs = 64; // that a member adds up at once

int64_t expert_at(const Pairs& all, const uint32_t* indices, int64_t pair) {
  const int64_t expert = indices[pair];
  if (expert >= all.experts) {
    fail(all.op, "indices must be below ", all.experts, " experts but one is ", expert, ".");
  }
  return expert;
}

/// Fills `segments` with runs of equal experts among the sorted pairs.
void cut(SortedPairs& s, const uint32_t* indices, const Pairs& all) {
  s.count = 0;
  for (int64_t i = 0; i < all.count(); ++i) {
    const int64_t expert = indices[s.pair[i]];
    if (s.count == 0 || s.segments[s.count - 1].expert != expert) {
      s.segments[s.count++] = {expert, i, i};
    }
    ++s.segments[s.count - 1].end;
    s.token[i] = static_cast<uint32_t>(s.pair[i] / all.chosen);
  }
}

void sort_few(SortedPairs& s, const uint32_t* indices, const Pairs& all) {
  for (int64_t i = 0; i < all.count(); ++i) {
    const int64_t expert = expert_at(all, indices, i);
    int64_t at = i;
    for (; at > 0 && indices[s.pair[at - 1]] > expert; --at) {
      s.pair[at] = s.pair[at - 1];
    }
    s.pair[at] = static_cast<uint32_t>(i);
  }
  cut(s, indices, all);
}

/// Counting sort; `starts` holds experts + 1 numbers.
void sort_many(SortedPairs& s, int64_t* starts, const uint32_t* indices, const Pairs& all) {
  std::fill_n(starts, all.experts + 1, int64_t{0});
  for (int64_t i = 0; i < all.count(); ++i) {
    ++starts[expert_at(all, indices, i) + 1];
  }
  for (int64_t e = 0; e < all.experts; ++e) {
    starts[e + 1] += starts[e];
  }
  for (int64_t i = 0; i < all.count(); ++i) {
    s.pair[starts[indices[i]]++] = static_cast<uint32_t>(i);
  }
  cut(s, indices, all);
}

/// Values j of a segment's pairs.
void gate_segment(
    const ExpertGate& op,
    const Call& call,
    const SortedPairs& s,
    const cpu::Rows& x,
    Segment segment,
    Range j,
    std::byte* to) {
  const Dtype dtype = op.matmul.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const cpu::Rows rows{x.prepared, segment.end - segment.begin, s.token + segment.begin};
  cpu::for_pairs_in(
      op.matmul,
      op.matmul.expert(weight_at(call, op.gate, op.kind), segment.expert, op.inner),
      op.matmul.expert(weight_at(call, op.up, op.kind), segment.expert, op.inner),
      j,
      rows,
      [&](Range part, int64_t first, int64_t count, float* gate, float* up, int64_t ld) {
        const int64_t n = part.end - part.begin;
        for (int64_t i = 0; i < count; ++i, gate += ld, up += ld) {
          if (op.exact) {
            cpu::round_row(dtype, gate, n);
            cpu::round_row(dtype, up, n);
          }
          cpu::swiglu_row(dtype, gate, up, n, op.exact);
          const int64_t position = segment.begin + first + i;
          const int64_t row = op.sorted ? position : s.pair[position];
          cpu::store_row(dtype, gate, to + (row * op.inner + part.begin) * size, n);
        }
      });
}

/// Outputs j of all tokens. A token's experts are added in the order of their numbers, whoever does
/// it.
void combine(
    const ExpertSum& op,
    const Call& call,
    const Pairs& pairs,
    const SortedPairs& s,
    const cpu::Rows& hidden,
    Range j,
    float* sums,
    int64_t ld) {
  const Dtype dtype = op.matmul.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const int64_t n = j.end - j.begin;
  const Tensor& weights = call.in[op.weights];
  const auto weight_size = static_cast<int64_t>(size_of(weights.dtype()));
  const auto down = weight_at(call, op.down, op.kind);
  alignas(64) float block[cpu::block_floats];
  const int64_t step = std::min(cpu::block_floats / n, op.matmul.block(cpu::block_floats).rows);
  for (int64_t t = 0; t < pairs.tokens; ++t) {
    std::fill_n(sums + t * ld, n, 0.0f);
  }
  for (int64_t i = 0; i < s.count; ++i) {
    const Segment segment = s.segments[i];
    const auto weight = op.matmul.expert(down, segment.expert, op.width);
    for (int64_t at = segment.begin; at < segment.end; at += step) {
      const int64_t count = std::min(step, segment.end - at);
      op.matmul.run(weight, j, cpu::rows_from(op.matmul, hidden, at, count), block, n);
      for (int64_t p = at; p < at + count; ++p) {
        float* y = block + (p - at) * n;
        float share = 0;
        const auto* from = weights.as<std::byte>() + s.pair[p] * weight_size;
        cpu::load_row(weights.dtype(), from, &share, 1);
        if (op.exact) {
          cpu::round_row(dtype, y, n);
          cpu::scale_row(share, y, n);
          cpu::round_row(dtype, y, n);
          share = 1;
        }
        cpu::axpy_row(share, y, sums + s.token[p] * ld, n);
      }
    }
  }
  for (int64_t t = 0; t < pairs.tokens; ++t) {
    float* y = sums + t * ld;
    const int64_t place = (t * op.width + j.begin) * size;
    if (op.residual) {
      if (op.exact) {
        cpu::round_row(dtype, y, n);
      }
      cpu::load_row(dtype, call.in.back().as<std::byte>() + place, block, n);
      cpu::axpy_row(1, block, y, n);
    }
    cpu::store_row(dtype, y, call.out[0].as<std::byte>() + place, n);
  }
}

} // namespace

size_t Pairs::scratch() const {
  if (are_few()) {
    return 0;
  }
  const auto e = static_cast<size_t>(experts);
  // The number of segments, starts, segments, tokens, pairs.
  return 8 + (e + 1) * 8 + e * sizeof(Segment) + static_cast<size_t>(count()) * 8;
}

SortedPairs Pairs::sort(const uint32_t* indices, std::byte* scratch, Few& own, Member& member)
    const {
  if (are_few()) {
    SortedPairs s{own.segments, 0, own.token, own.pair};
    sort_few(s, indices, *this);
    return s;
  }
  auto* number = reinterpret_cast<int64_t*>(scratch);
  auto* starts = number + 1;
  auto* segments = reinterpret_cast<Segment*>(starts + experts + 1);
  auto* token = reinterpret_cast<uint32_t*>(segments + experts);
  SortedPairs s{segments, 0, token, token + count()};
  if (member.rank() == 0) {
    sort_many(s, starts, indices, *this);
    *number = s.count;
  }
  member.barrier();
  s.count = *number;
  return s;
}

void ExpertGate::run(
    const Call& call,
    const Pairs& pairs,
    const SortedPairs& s,
    const cpu::Rows& x,
    std::byte* to,
    Member& member) const {
  if (pairs.are_few()) {
    // All chosen experts' values are one range, cut into equal parts.
    const Range mine = member.split(s.count * inner, 8);
    for (int64_t i = mine.begin / inner; i * inner < mine.end; ++i) {
      const Range j{
          std::max(mine.begin - i * inner, int64_t{0}), std::min(mine.end - i * inner, inner)};
      gate_segment(*this, call, s, x, s.segments[i], j, to);
    }
    member.barrier();
    return;
  }
  const int64_t width = matmul.block(1).outputs;
  const int64_t blocks = (inner + width - 1) / width;
  member.dynamic(s.count * blocks, 1, [&](Range unit) {
    const int64_t j = unit.begin % blocks * width;
    const Range part{j, std::min(j + width, inner)};
    gate_segment(*this, call, s, x, s.segments[unit.begin / blocks], part, to);
  });
}

size_t ExpertSum::scratch(const Pairs& pairs) const {
  return pairs.are_few() ? 0 : static_cast<size_t>(pairs.tokens * width) * sizeof(float);
}

void ExpertSum::run(
    const Call& call,
    const Pairs& pairs,
    const SortedPairs& s,
    const cpu::Rows& hidden,
    std::byte* scratch,
    Member& member) const {
  if (pairs.are_few()) {
    alignas(64) float sums[buffer_floats];
    const int64_t rows = std::max<int64_t>({pairs.tokens, pairs.count(), 8});
    const int64_t step = buffer_floats / rows / 8 * 8;
    const Range mine = member.split(width, 8);
    for (int64_t j = mine.begin; j < mine.end; j += step) {
      combine(*this, call, pairs, s, hidden, {j, std::min(j + step, mine.end)}, sums, step);
    }
    return;
  }
  auto* sums = reinterpret_cast<float*>(scratch);
  member.dynamic(width, sum_outputs, [&](Range j) {
    combine(*this, call, pairs, s, hidden, j, sums + j.begin, width);
  });
}

size_t
experts_traffic(const Types& in, const Types& out, size_t first, size_t last, const Type& indices) {
  const auto experts = static_cast<size_t>(in[first].shape[0]);
  const auto pairs = static_cast<size_t>(indices.shape.size());
  size_t bytes = out[0].bytes();
  for (size_t i = 0; i < in.size(); ++i) {
    const bool stack = i >= first && i < last;
    bytes += stack && experts ? in[i].bytes() / experts * std::min(pairs, experts) : in[i].bytes();
  }
  return bytes;
}

void push_random_experts(
    Arrays& in,
    const mx::Shape& x,
    int experts,
    int inner,
    const WeightKind& kind,
    bool residual,
    mx::Dtype dtype) {
  push_random_weight(in, {experts, inner, x.back()}, kind, dtype, 3);
  push_random_weight(in, {experts, inner, x.back()}, kind, dtype, 4);
  push_random_weight(in, {experts, x.back(), inner}, kind, dtype, 5);
  if (residual) {
    in.push_back(random_case(x, dtype, 6));
  }
}

Arrays random_routing(mx::Shape x, int experts, int chosen, mx::Dtype dtype) {
  auto shape = x;
  shape.back() = experts;
  auto order = mx::argsort(random_case(shape, mx::float32, 7), -1);
  mx::Shape start(shape.size(), 0);
  shape.back() = chosen;
  auto indices = mx::slice(order, start, shape);
  auto weights = mx::softmax(random_case(shape, dtype, 2), -1);
  return {random_case(x, dtype, 1), mx::contiguous(indices), weights};
}

} // namespace zmlx
