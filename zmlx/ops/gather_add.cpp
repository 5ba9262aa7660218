// zmlx/ops/gather_add.cpp: rows of a table by index, plus an array, without the gathered copy.
#include <limits>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/kernel/cpu/stream.h"
#include "zmlx/kernel/cuda/weights.h"
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
    const bool past_cache = cpu::past_cache(call.out[0], bytes);
    auto row_of = [&](int64_t i) {
      return table.as<std::byte>() + row_at(call.in[1], i, table.shape()[0]) * bytes;
    };
    cpu::over_rows(member, call.in[1].shape().size(), bytes, [&](Range part) {
      auto* row = part.begin < part.end ? row_of(part.begin) : nullptr;
      for (int64_t i = part.begin; i < part.end; ++i) {
        // The hardware cannot foresee the next row of the table.
        auto* next = i + 1 < part.end ? row_of(i + 1) : nullptr;
        cpu::add_row(
            table.dtype(),
            row,
            x.as<std::byte>() + i * bytes,
            n,
            call.out[0].as<std::byte>() + i * bytes,
            past_cache,
            next);
        row = next;
      }
    });
    if (past_cache) {
      cpu::flush_stores();
    }
  }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types& out, const Attrs&, const cuda::Device&) {
  const Type& table = in[0];
  const int64_t rows = in[1].shape.size();
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  // Elements of a block: 256 threads with 16 bytes each.
  const auto piece = static_cast<int64_t>(256 * 16 / size_of(table.dtype));
  const int64_t pieces = (table.shape[1] + piece - 1) / piece;
  if (out[0].shape.size() == 0 || rows > most || table.shape[0] > most || pieces > 65535) {
    return {};
  }
  cuda::Launch launch;
  launch.source = "elements.cuh";
  launch.kernel = "gather_add<" + cuda::text_of(table.dtype) +
      (in[1].dtype == Dtype::u32 ? ", uint32_t>" : ", int32_t>");
  launch.grid = {static_cast<uint32_t>(rows), static_cast<uint32_t>(pieces), 1};
  launch.block[0] = 256;
  launch.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::in(2),
      cuda::out(0),
      cuda::i32(table.shape[0]),
      cuda::i32(table.shape[1])};
  return {{launch}, 0};
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
        "from the end) and x [.., N]. An index outside the table is an error; "
        "on a GPU, which cannot raise one, its row is NaN.")
    .function()
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("rows", {100, 256}, {37}),
        example("signed", {10, 33}, {2, 5}, true),
        example("one", {1, 1}, {1}),
        example("tail", {7, 31}, {13}),
        example("empty", {7, 8}, {0}),
    });

} // namespace zmlx
