// zmlx/ops/moe_mlp.cpp: the chosen experts' gated MLPs, weighted and summed, with a residual after.
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cuda/moe.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_mlp";

struct Moe {
  WeightKind kind;
  bool residual;
  bool exact;

  /// The inputs where gate (0), up (1) and down (2) begin.
  size_t weight(size_t i) const {
    return 3 + i * kind.inputs();
  }
};

Moe settings(const Attrs& attrs) {
  auto& activation = attrs.text("activation");
  if (activation != "silu") {
    fail(name, "activation must be silu but got ", activation, ".");
  }
  return {
      weight_kind(name, attrs), attrs.integer("residual", 0) != 0, attrs.integer("exact", 0) != 0};
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  expect_inputs(name, in, op.weight(3) + op.residual);
  auto& x = in[0];
  auto& indices = in[1];
  expect_floating(name, "x", x);
  if (x.shape.rank() == 0 || indices.shape.rank() == 0) {
    fail(name, "x and indices must have at least 1 axis but got a number.");
  }
  expect_dtype(name, "indices", indices, Dtype::u32);
  Shape chosen = x.shape;
  chosen[-1] = indices.shape[-1];
  expect_shape(name, "indices", indices, chosen);
  expect_dtype(name, "weights", in[2], x.dtype);
  expect_shape(name, "weights", in[2], chosen);
  Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, x.dtype, 3);
  Shape up = expect_weight(name, "up", in, op.weight(1), op.kind, x.dtype, 3);
  Shape down = expect_weight(name, "down", in, op.weight(2), op.kind, x.dtype, 3);
  if (gate[2] != x.shape[-1] || !(up == gate) || down[0] != gate[0] || down[2] != gate[1]) {
    fail(
        name,
        "gate and up must be (E, F, ",
        x.shape[-1],
        ") and down (E, D, F) but they are ",
        to_string(gate),
        ", ",
        to_string(up),
        " and ",
        to_string(down),
        ".");
  }
  Type out = x;
  out.shape[-1] = down[1];
  if (op.residual) {
    expect_dtype(name, "residual", in.back(), x.dtype);
    expect_shape(name, "residual", in.back(), out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto experts = [&](const mx::array& x, size_t i) {
    return weight_gather_matmul(x, in, op.weight(i), in[1], op.kind);
  };
  auto x = mx::expand_dims(in[0], {-2, -3});
  auto gate = experts(x, 0);
  auto hidden = gate * mx::sigmoid(gate) * experts(x, 1);
  auto y = mx::squeeze(experts(hidden, 2), -2);
  auto out = mx::sum(y * mx::expand_dims(in[2], -1), -2);
  return {op.residual ? in.back() + out : out};
}

/// Pairs of a token and one of its experts that one expert has, as positions in the sorted list.
struct Segment {
  int64_t expert;
  int64_t begin;
  int64_t end;
};

/// All pairs sorted by expert, a token's pairs in order; `token[i]` and `pair[i]` belong to
/// position i.
struct Sorted {
  Segment* segments;
  int64_t count = 0;
  uint32_t* token;
  uint32_t* pair;
};

// A decode step has few pairs: each member sorts them for itself, and a block of outputs fits a
// member's stack.
constexpr int64_t few_pairs = 64;
constexpr int64_t buffer_floats = 8192;

struct FewPairs {
  Segment segments[few_pairs];
  uint32_t token[few_pairs];
  uint32_t pair[few_pairs];
};

int64_t expert_at(const uint32_t* indices, int64_t pair, int64_t experts) {
  const int64_t expert = indices[pair];
  if (expert >= experts) {
    fail(name, "indices must be below ", experts, " experts but one is ", expert, ".");
  }
  return expert;
}

/// Fills `segments` with runs of equal experts among the sorted pairs.
void cut(Sorted& s, const uint32_t* indices, int64_t pairs, int64_t chosen) {
  s.count = 0;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t expert = indices[s.pair[i]];
    if (s.count == 0 || s.segments[s.count - 1].expert != expert) {
      s.segments[s.count++] = {expert, i, i};
    }
    ++s.segments[s.count - 1].end;
    s.token[i] = static_cast<uint32_t>(s.pair[i] / chosen);
  }
}

void sort_few(Sorted& s, const uint32_t* indices, int64_t pairs, int64_t chosen, int64_t experts) {
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t expert = expert_at(indices, i, experts);
    int64_t at = i;
    for (; at > 0 && indices[s.pair[at - 1]] > expert; --at) {
      s.pair[at] = s.pair[at - 1];
    }
    s.pair[at] = static_cast<uint32_t>(i);
  }
  cut(s, indices, pairs, chosen);
}

/// Counting sort; `starts` holds experts + 1 numbers.
void sort_many(
    Sorted& s,
    int64_t* starts,
    const uint32_t* indices,
    int64_t pairs,
    int64_t chosen,
    int64_t experts) {
  std::fill_n(starts, experts + 1, int64_t{0});
  for (int64_t i = 0; i < pairs; ++i) {
    ++starts[expert_at(indices, i, experts) + 1];
  }
  for (int64_t e = 0; e < experts; ++e) {
    starts[e + 1] += starts[e];
  }
  for (int64_t i = 0; i < pairs; ++i) {
    s.pair[starts[indices[i]]++] = static_cast<uint32_t>(i);
  }
  cut(s, indices, pairs, chosen);
}

struct Kernel {
  Moe op;
  cpu::Matmul in; // gate and up
  cpu::Matmul out; // down
  int64_t tokens;
  int64_t chosen;
  int64_t experts;
  int64_t width; // of the output
  // Scratch, in bytes, after the prepared x.
  size_t hidden_at = 0; // hidden rows, one a pair, in sorted order
  size_t prepared_at = 0; // the same prepared
  size_t sort_at = 0; // the sorted list, where pairs are many
  size_t sums_at = 0; // float32 outputs, where pairs are many
  size_t scratch = 0;

  int64_t pairs() const {
    return tokens * chosen;
  }
  void lay_out();
  Sorted sort(const Call& call, FewPairs& own, Member& member) const;
  void hide(const Call& call, const Sorted& s, const cpu::Rows& x, Segment segment, Range j) const;
  void combine(
      const Call& call,
      const Sorted& s,
      const cpu::Rows& hidden,
      Range j,
      float* sums,
      int64_t ld) const;
  void operator()(const Call& call, Member& member) const;
};

void Kernel::lay_out() {
  auto take = [&](size_t bytes) {
    const size_t at = scratch;
    scratch += (bytes + 63) / 64 * 64;
    return at;
  };
  const auto n = static_cast<size_t>(pairs());
  take(cpu::prepare_scratch(in, tokens));
  hidden_at = take(n * static_cast<size_t>(out.k()) * size_of(out.dtype()));
  prepared_at = take(cpu::prepare_scratch(out, pairs()));
  if (pairs() > few_pairs) {
    const auto e = static_cast<size_t>(experts);
    // The number of segments, starts, segments, tokens, pairs.
    sort_at = take(8 + (e + 1) * 8 + e * sizeof(Segment) + n * 8);
    sums_at = take(static_cast<size_t>(tokens * width) * sizeof(float));
  }
}

Sorted Kernel::sort(const Call& call, FewPairs& own, Member& member) const {
  const auto* indices = call.in[1].as<uint32_t>();
  if (pairs() <= few_pairs) {
    Sorted s{own.segments, 0, own.token, own.pair};
    sort_few(s, indices, pairs(), chosen, experts);
    return s;
  }
  auto* count = reinterpret_cast<int64_t*>(call.scratch + sort_at);
  auto* starts = count + 1;
  auto* segments = reinterpret_cast<Segment*>(starts + experts + 1);
  auto* token = reinterpret_cast<uint32_t*>(segments + experts);
  Sorted s{segments, 0, token, token + pairs()};
  if (member.rank() == 0) {
    sort_many(s, starts, indices, pairs(), chosen, experts);
    *count = s.count;
  }
  member.barrier();
  s.count = *count;
  return s;
}

/// Hidden values j of a segment's pairs.
void Kernel::hide(const Call& call, const Sorted& s, const cpu::Rows& x, Segment segment, Range j)
    const {
  const Dtype dtype = in.dtype();
  const int64_t inner = out.k();
  const auto size = static_cast<int64_t>(size_of(dtype));
  std::byte* hidden = call.scratch + hidden_at;
  const cpu::Rows rows{x.prepared, segment.end - segment.begin, s.token + segment.begin};
  cpu::for_pairs_in(
      in,
      in.expert(weight_at(call, op.weight(0), op.kind), segment.expert, inner),
      in.expert(weight_at(call, op.weight(1), op.kind), segment.expert, inner),
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
          const int64_t at = (segment.begin + first + i) * inner + part.begin;
          cpu::store_row(dtype, gate, hidden + at * size, n);
        }
      });
}

/// Outputs j of all tokens. A token's experts are added in the order of their numbers, whoever does
/// it.
void Kernel::combine(
    const Call& call,
    const Sorted& s,
    const cpu::Rows& hidden,
    Range j,
    float* sums,
    int64_t ld) const {
  const Dtype dtype = out.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const int64_t n = j.end - j.begin;
  const auto* weights = call.in[2].as<std::byte>();
  const auto down = weight_at(call, op.weight(2), op.kind);
  alignas(64) float block[buffer_floats];
  const int64_t step = std::min(buffer_floats / n, cpu::block_rows);
  for (int64_t t = 0; t < tokens; ++t) {
    std::fill_n(sums + t * ld, n, 0.0f);
  }
  for (int64_t i = 0; i < s.count; ++i) {
    const Segment segment = s.segments[i];
    const auto weight = out.expert(down, segment.expert, width);
    for (int64_t at = segment.begin; at < segment.end; at += step) {
      const int64_t count = std::min(step, segment.end - at);
      out.run(weight, j, cpu::rows_from(out, hidden, at, count), block, n);
      for (int64_t p = at; p < at + count; ++p) {
        float* y = block + (p - at) * n;
        float share = 0;
        cpu::load_row(dtype, weights + s.pair[p] * size, &share, 1);
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
  for (int64_t t = 0; t < tokens; ++t) {
    float* y = sums + t * ld;
    const int64_t place = (t * width + j.begin) * size;
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

void Kernel::operator()(const Call& call, Member& member) const {
  FewPairs own;
  const Sorted s = sort(call, own, member);
  cpu::LocalRows local;
  const auto x = cpu::prepare_rows(in, call.in[0].data, tokens, {}, call.scratch, local, member);
  const int64_t inner = out.k();
  const bool few = pairs() <= few_pairs;
  if (few) {
    // All chosen experts' hidden values are one range, cut into equal parts.
    const Range mine = member.split(s.count * inner, 8);
    for (int64_t i = mine.begin / inner; i * inner < mine.end; ++i) {
      const Range j{
          std::max(mine.begin - i * inner, int64_t{0}), std::min(mine.end - i * inner, inner)};
      hide(call, s, x, s.segments[i], j);
    }
    member.barrier();
  } else {
    const int64_t blocks = (inner + cpu::block_outputs - 1) / cpu::block_outputs;
    member.dynamic(s.count * blocks, 1, [&](Range unit) {
      const int64_t j = unit.begin % blocks * cpu::block_outputs;
      const Range part{j, std::min(j + cpu::block_outputs, inner)};
      hide(call, s, x, s.segments[unit.begin / blocks], part);
    });
  }

  const std::byte* rows = call.scratch + hidden_at;
  const auto hidden =
      cpu::prepare_rows(out, rows, pairs(), {}, call.scratch + prepared_at, local, member);
  if (few) {
    alignas(64) float sums[buffer_floats];
    const int64_t step = buffer_floats / std::max<int64_t>(std::max(tokens, pairs()), 8) / 8 * 8;
    const Range mine = member.split(width, 8);
    for (int64_t j = mine.begin; j < mine.end; j += step) {
      combine(call, s, hidden, {j, std::min(j + step, mine.end)}, sums, step);
    }
  } else {
    auto* sums = reinterpret_cast<float*>(call.scratch + sums_at);
    member.dynamic(width, cpu::block_outputs, [&](Range j) {
      combine(call, s, hidden, j, sums + j.begin, width);
    });
  }
}

CpuKernel kernel(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  const Dtype dtype = in[0].dtype;
  const Shape& gate = in[op.weight(0)].shape;
  const int64_t tokens = in[0].shape.rows();
  const int64_t chosen = in[1].shape[-1];
  if (!cpu::Matmul::supports(dtype, op.kind.format, in[0].shape[-1]) ||
      !cpu::Matmul::supports(dtype, op.kind.format, gate[1]) || tokens * chosen == 0 ||
      tokens * chosen > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  Kernel run{
      op,
      {dtype, op.kind.format, in[0].shape[-1]},
      {dtype, op.kind.format, gate[1]},
      tokens,
      chosen,
      gate[0],
      out[0].shape[-1]};
  run.lay_out();
  return {run, run.scratch};
}

cuda::Kernel
cuda_kernel(const Types& in, const Types& out, const Attrs& attrs, const cuda::Device& device) {
  auto op = settings(attrs);
  const int64_t pairs = in[1].shape.size();
  if (pairs == 0) {
    return {};
  }
  auto at = [&](size_t i) { return static_cast<int>(op.weight(i)); };
  const Shape gate = expect_weight(name, "gate", in, op.weight(0), op.kind, in[0].dtype, 3);
  cuda::Moe moe{
      in[0].dtype,
      op.kind.format,
      in[0].shape.rows(),
      in[1].shape[-1],
      gate[0],
      gate[2],
      gate[1],
      out[0].shape[-1],
      cuda::in(0),
      cuda::in(1),
      cuda::in(2),
      at(0),
      at(1),
      at(2),
      op.residual,
      cuda::in(static_cast<int>(in.size()) - 1),
      cuda::out(0),
      op.exact};
  cuda::Kernel kernel;
  cuda::push_moe(kernel, moe, device);
  return kernel;
}

/// Only the chosen experts are read: as many as there are pairs, at most all.
size_t traffic(const Types& in, const Types& out, const Attrs& attrs) {
  auto op = settings(attrs);
  const auto experts = static_cast<size_t>(in[op.weight(0)].shape[0]);
  const auto pairs = static_cast<size_t>(in[1].shape.size());
  size_t bytes = out[0].bytes();
  for (size_t i = 0; i < in.size(); ++i) {
    const bool weight = i >= op.weight(0) && i < op.weight(3);
    bytes += weight && experts ? in[i].bytes() / experts * std::min(pairs, experts) : in[i].bytes();
  }
  return bytes;
}

Case example(std::string label, mx::Shape x, int experts, int chosen, int inner, Attrs attrs) {
  attrs.set("activation", std::string("silu"));
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto op = settings(attrs);
        auto shape = x;
        shape.back() = experts;
        auto order = mx::argsort(random_case(shape, mx::float32, 7), -1);
        mx::Shape start(shape.size(), 0);
        shape.back() = chosen;
        auto indices = mx::slice(order, start, shape);
        auto weights = mx::softmax(random_case(shape, dtype, 2), -1);
        Arrays in = {random_case(x, dtype, 1), mx::contiguous(indices), weights};
        push_random_weight(in, {experts, inner, x.back()}, op.kind, dtype, 3);
        push_random_weight(in, {experts, inner, x.back()}, op.kind, dtype, 4);
        push_random_weight(in, {experts, x.back(), inner}, op.kind, dtype, 5);
        if (op.residual) {
          in.push_back(random_case(x, dtype, 6));
        }
        return in;
      },
      attrs};
}

const Attrs residual = {{"residual", int64_t{1}}};

} // namespace

ZMLX_OP(moe_mlp)
    .args({"x", "indices", "weights", "*rest"})
    .doc(
        "The MLPs of a mixture of experts: sum over j of weights[.., j] * down_e(silu(gate_e(x)) * "
        "up_e(x)), e = indices[.., j], for x [.., D], indices uint32 and weights [.., k], gate and up "
        "[E, F, D], down [E, D', F] (mode none, or quantised with group_size and bits): [.., D']. "
        "residual=1: the last input [.., D'] is added. Inputs: x, indices, weights, gate, up, down "
        "(codes, scales, biases, or what else the mode has), [residual]. The hidden values are rounded to the "
        "dtype; exact=1 also rounds where the unfused graph does.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .traffic(traffic)
    .cases({
        example("decode", {1, 1, 256}, 16, 8, 128, weight_attrs(4, 64, residual)),
        example("decode 8 bit", {1, 256}, 8, 2, 192, weight_attrs(8, 64)),
        example("few tokens", {3, 128}, 5, 3, 96, weight_attrs(4, 32, residual)),
        example("prompt", {2, 37, 128}, 16, 4, 192, weight_attrs(4, 64, residual)),
        example("one expert", {140, 64}, 1, 1, 128, weight_attrs(8, 64)),
        example("odd bits", {33, 128}, 4, 2, 128, weight_attrs(5, 128)),
        example("six bits", {1, 128}, 4, 2, 192, weight_attrs(6, 64)),
        example("mxfp4", {1, 256}, 8, 4, 96, weight_attrs("mxfp4", residual)),
        example("mxfp4 prompt", {37, 64}, 8, 2, 96, weight_attrs("mxfp4")),
        example("mxfp8", {3, 96}, 5, 2, 64, weight_attrs("mxfp8")),
        example("nvfp4", {9, 48}, 5, 2, 80, weight_attrs("nvfp4")),
        example("dense", {1, 31}, 7, 3, 33, weight_attrs(0, 0, residual)),
        example("dense prompt", {33, 97}, 32, 8, 131, weight_attrs(0, 0)),
        example(
            "exact",
            {5, 128},
            8,
            2,
            64,
            weight_attrs(4, 64, {{"residual", int64_t{1}}, {"exact", int64_t{1}}})),
        example(
            "exact prompt",
            {67, 64},
            8,
            2,
            64,
            weight_attrs(4, 64, {{"residual", int64_t{1}}, {"exact", int64_t{1}}})),
        example("one", {1}, 1, 1, 1, weight_attrs(0, 0)),
    });

} // namespace zmlx
