// zmlx/ops/gather_add.cpp: rows of a table by index, plus an array, without the gathered copy.
#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "gather_add";

Types types(const Types& in, const Attrs&) {
  expect_inputs(name, in, 3);
  auto &table = in[0], &indices = in[1], &x = in[2];
  expect_floating(name, "table", table);
  expect_rank(name, "table", table, 2);
  if (indices.dtype != Dtype::i32 && indices.dtype != Dtype::u32) {
    fail(name, "indices must be int32 or uint32 but got ", name_of(indices.dtype), ".");
  }
  Shape shape = indices.shape;
  shape.push_back(table.shape[1]);
  expect_dtype(name, "x", x, table.dtype);
  expect_shape(name, "x", x, shape);
  return {x};
}

Arrays reference(const Arrays& in, const Attrs&) {
  return {mx::take(in[0], in[1], 0) + in[2]};
}

int64_t row_at(const Tensor& indices, int64_t i, int64_t rows) {
  int64_t index = indices.dtype() == Dtype::u32 ? int64_t{indices.as<uint32_t>()[i]}
                                                : int64_t{indices.as<int32_t>()[i]};
  const int64_t row = index < 0 ? index + rows : index;
  if (row < 0 || row >= rows) {
    fail(name, "indices must be below the table's ", rows, " rows but one is ", index, ".");
  }
  return row;
}

CpuKernel kernel(const Types&, const Types&, const Attrs&) {
  return {[](const Call& call, Member& member) {
    const Tensor& table = call.in[0];
    const Tensor& x = call.in[2];
    const int64_t n = table.shape()[1];
    const int64_t bytes = n * static_cast<int64_t>(size_of(table.dtype()));
    const Range part = member.split(call.in[1].shape().size());
    for (int64_t i = part.begin; i < part.end; ++i) {
      const int64_t row = row_at(call.in[1], i, table.shape()[0]);
      cpu::add_row(
          table.dtype(),
          table.as<std::byte>() + row * bytes,
          x.as<std::byte>() + i * bytes,
          n,
          call.out[0].as<std::byte>() + i * bytes);
    }
  }};
}

Case example(std::string label, mx::Shape table, mx::Shape chosen, bool is_signed = false) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto shape = chosen;
        shape.push_back(table[1]);
        auto indices = mx::random::randint(
            is_signed ? -table[0] : 0, table[0], chosen, mx::int32, mx::random::key(5));
        return Arrays{
            random_case(table, dtype, 1),
            is_signed ? indices : mx::astype(indices, mx::uint32),
            random_case(shape, dtype, 2)};
      },
      {}};
}

} // namespace

ZMLX_OP(gather_add)
    .args({"table", "indices", "x"})
    .doc(
        "table[indices] + x for a table [R, N], indices [..] (int32 or uint32; negative ones count "
        "from the end) and x [.., N]. An index outside the table is an error.")
    .function()
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cases({
        example("rows", {100, 256}, {37}),
        example("signed", {10, 33}, {2, 5}, true),
        example("one", {1, 1}, {1}),
        example("tail", {7, 31}, {13}),
        example("empty", {7, 8}, {0}),
    });

} // namespace zmlx
