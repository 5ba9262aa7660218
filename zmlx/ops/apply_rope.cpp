// zmlx/ops/apply_rope.cpp: rotary position embedding from given cosines and sines, for queries and
// keys in one pass.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/ops/apply_rope.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "zmlx/kernel/cpu/rope-inl.h"
#include "zmlx/ops/op.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {

/// Rows of x in memory order; `inner` of them have one position.
template <typename T, typename Table>
void apply_rope_rows(
    const Call& call,
    size_t at,
    const cpu::Rope& rope,
    int64_t inner,
    Range rows) {
  const Tensor& x = call.in[at];
  const Shape& table = call.in[0].shape();
  const int64_t width = x.shape()[-1];
  const int64_t half = table[-1];
  const int64_t tokens = table[-2];
  const int64_t per_sequence = table.rank() == 3 ? x.shape().rows() / table[0] : 0;
  Rotation rotation;
  int64_t turned = -1;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t sequence = per_sequence ? row / per_sequence : 0;
    const int64_t place = sequence * tokens + row / inner % tokens;
    if (place != turned) {
      turn_by(
          rotation,
          call.in[0].as<Table>() + place * half,
          call.in[1].as<Table>() + place * half,
          rope);
      turned = place;
    }
    rotate_row(
        rotation,
        rope,
        x.as<T>() + row * width,
        static_cast<size_t>(width),
        call.out[at - 2].as<T>() + row * width);
  }
}

template <typename T>
void apply_rope_of(const Call& call, size_t at, const cpu::Rope& rope, int64_t inner, Range rows) {
  if (call.in[0].dtype() == Dtype::f32) {
    apply_rope_rows<T, float>(call, at, rope, inner, rows);
  } else {
    apply_rope_rows<T, T>(call, at, rope, inner, rows);
  }
}

void apply_rope_kernel(
    const Call& call,
    size_t at,
    const cpu::Rope& rope,
    int64_t inner,
    Range rows) {
  switch (call.in[at].dtype()) {
    case Dtype::f16:
      return apply_rope_of<hwy::float16_t>(call, at, rope, inner, rows);
    case Dtype::bf16:
      return apply_rope_of<hwy::bfloat16_t>(call, at, rope, inner, rows);
    default:
      return apply_rope_of<float>(call, at, rope, inner, rows);
  }
}

} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"
#include "zmlx/ops/rope.h"

namespace zmlx {

HWY_EXPORT(apply_rope_kernel);

namespace {

constexpr const char* name = "apply_rope";

bool heads_last(const Attrs& attrs) {
  return attrs.integer("heads_last", 0) != 0;
}

Types types(const Types& in, const Attrs& attrs) {
  if (in.size() < 3) {
    fail(name, "expected cos, sin and at least one x but got ", in.size(), " inputs.");
  }
  const int least = heads_last(attrs) ? 3 : 2;
  const Shape& table = in[0].shape;
  if (table.rank() != 2 && table.rank() != 3) {
    fail(name, "cos must be [T, dims / 2] or [B, T, dims / 2] but got ", to_string(in[0]), ".");
  }
  expect_dtype(name, "sin", in[1], in[0].dtype);
  expect_shape(name, "sin", in[1], table);
  for (size_t i = 2; i < in.size(); ++i) {
    auto& x = in[i];
    expect_floating(name, "x", x);
    if (x.shape.rank() < least + (table.rank() == 3 ? 1 : 0)) {
      fail(
          name,
          "x must be ",
          table.rank() == 3 ? "[B, .., " : "[.., ",
          heads_last(attrs) ? "T, H, D]" : "T, D]",
          " but got ",
          to_string(x),
          ".");
    }
    if (in[0].dtype != Dtype::f32) {
      expect_dtype(name, "cos", in[0], x.dtype);
    }
    const int64_t tokens = x.shape[-least];
    if (table[-2] != tokens) {
      fail(name, "cos and sin must have ", tokens, " positions, as x, but got ", table[-2], ".");
    }
    if (table.rank() == 3 && table[0] != x.shape[0]) {
      fail(name, "cos and sin must be of ", x.shape[0], " sequences but got ", table[0], ".");
    }
    if (table[-1] < 1 || 2 * table[-1] > x.shape[-1]) {
      fail(
          name,
          "cos and sin must have 1 to ",
          x.shape[-1] / 2,
          " columns, half of x's last axis, but got ",
          table[-1],
          ".");
    }
  }
  return Types(in.begin() + 2, in.end());
}

/// A table with axes for what lies between a sequence and its tokens, and for heads that follow.
mx::array spread(mx::array table, size_t rank, bool last) {
  if (last) {
    table = mx::expand_dims(table, -2);
  }
  const auto own = table.ndim() - (last ? 1 : 0);
  if (own == 3) {
    auto shape = table.shape();
    shape.insert(shape.begin() + 1, rank - table.ndim(), 1);
    table = mx::reshape(table, shape);
  }
  return table;
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  Arrays out;
  for (size_t i = 2; i < in.size(); ++i) {
    auto of = [&](const mx::array& table) {
      return mx::astype(spread(table, in[i].ndim(), heads_last(attrs)), mx::float32);
    };
    auto x = mx::astype(in[i], mx::float32);
    auto y = rotated_reference(x, of(in[0]), of(in[1]), attrs.integer("traditional", 0) != 0);
    out.push_back(mx::astype(y, in[i].dtype()));
  }
  return out;
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  cpu::Rope rope{2 * in[0].shape[-1], attrs.integer("traditional", 0) != 0};
  if (rope.dims > cpu::max_rope_dims) {
    return {};
  }
  return {[rope, last = heads_last(attrs)](const Call& call, Member& member) {
    for (size_t i = 2; i < call.in.size(); ++i) {
      const Shape& x = call.in[i].shape();
      HWY_DYNAMIC_DISPATCH(apply_rope_kernel)
      (call, i, rope, last ? x[-2] : 1, member.split(x.rows()));
    }
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  const Shape& table = in[0].shape;
  cuda::Kernel kernel;
  for (size_t i = 2; i < in.size(); ++i) {
    const Shape& x = in[i].shape;
    const int64_t rows = x.rows();
    if (x.size() == 0) {
      continue;
    }
    if (!cuda::countable({rows, x[-1]})) {
      return {};
    }
    auto launch = cuda::thread_a_unit(
        "rotary.cuh",
        "apply_rope<" + cuda::text_of(in[i].dtype) + ", " + cuda::text_of(in[0].dtype) + ", " +
            cuda::text_of(attrs.integer("traditional", 0) != 0) + ">",
        rows * ((x[-1] + 1) / 2));
    const auto number = static_cast<int>(i);
    launch.arguments = {
        cuda::in(number),
        cuda::in(0),
        cuda::in(1),
        cuda::out(number - 2),
        cuda::i32(rows),
        cuda::i32(x[-1]),
        cuda::i32(table[-1]),
        cuda::i32(table[-2]),
        cuda::i32(heads_last(attrs) ? x[-2] : 1),
        cuda::i32(table.rank() == 3 ? rows / table[0] : 0)};
    kernel.launches.push_back(std::move(launch));
  }
  return kernel;
}

Case example(std::string label, mx::Shape table, std::vector<mx::Shape> shapes, Attrs attrs = {}) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto angle = random_case(table, mx::float32, 9, 3);
        Arrays in = {mx::cos(angle), mx::sin(angle)};
        for (auto& shape : shapes) {
          in.push_back(random_case(shape, dtype, in.size()));
        }
        return in;
      },
      std::move(attrs)};
}

const Attrs last = {{"heads_last", int64_t{1}}};
const Attrs pairs = {{"traditional", int64_t{1}}};
const Attrs pairs_last = {{"traditional", int64_t{1}}, {"heads_last", int64_t{1}}};

Case in_dtype(Case of) {
  of.name += ", tables in x's dtype";
  of.inputs = [inputs = of.inputs](mx::Dtype dtype) {
    auto in = inputs(dtype);
    in[0] = mx::astype(in[0], dtype);
    in[1] = mx::astype(in[1], dtype);
    return in;
  };
  return of;
}

} // namespace

ZMLX_OP(apply_rope)
    .args({"cos", "sin", "*x"})
    .doc(
        "Each x [.., T, D], or [.., T, H, D] when heads_last=1, with its first `dims` elements rotated "
        "in pairs (i, i + dims / 2), or (2i, 2i + 1) when traditional=1, by angles whose cosines and "
        "sines are given: [T, dims / 2], or [B, T, dims / 2] for sequences with positions of their "
        "own, in float32 or x's dtype (Su et al., 2021).")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("queries and keys", {37, 32}, {{2, 8, 37, 64}, {2, 2, 37, 64}}),
        example("heads last", {5, 64}, {{1, 5, 4, 128}, {1, 5, 1, 128}}, last),
        example("own positions", {3, 7, 16}, {{3, 2, 7, 33}}),
        example("own positions, heads last", {2, 31, 8}, {{2, 31, 3, 16}}, pairs_last),
        in_dtype(example("interleaved part", {33, 15}, {{2, 33, 31}}, pairs)),
        in_dtype(example("matrix", {32, 16}, {{32, 32}})),
        example("one", {1, 1}, {{1, 2}}),
        example("empty", {0, 4}, {{2, 0, 8}}),
    });

} // namespace zmlx
#endif
