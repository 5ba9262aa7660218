// zmlx/ops/scatter_add.cpp: rows added to the rows of a table that their indices name.
#include <algorithm>
#include <limits>

#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/indices.h"

namespace zmlx {
namespace {

constexpr const char* name = "scatter_add";
constexpr int64_t block = 1024; // elements of a row that are summed at a time
constexpr int64_t most_looks = int64_t{1} << 31; // of a GPU's blocks at indices

Types types(const Types& in, const Attrs& attrs) {
  if (in.size() < 2 || in.size() > 3) {
    fail(name, "expected indices, updates and at most a table but got ", in.size(), " inputs.");
  }
  auto &indices = in[0], &updates = in[1];
  const int64_t rows = attrs.integer("rows");
  expect_indices(name, "indices", indices);
  expect_floating(name, "updates", updates);
  if (updates.shape.rank() != indices.shape.rank() + 1 ||
      !std::equal(indices.shape.begin(), indices.shape.end(), updates.shape.begin())) {
    fail(
        name,
        "updates must be rows for each of the indices, ",
        to_string(indices.shape),
        ", but got ",
        to_string(updates),
        ".");
  }
  if (rows < 0 || rows >= std::numeric_limits<int32_t>::max()) {
    fail(name, "rows must not be negative, and fit an int32, but got ", rows, ".");
  }
  Type out{updates.dtype, {rows, updates.shape[-1]}};
  if (in.size() > 2) {
    expect_dtype(name, "onto", in[2], updates.dtype);
    expect_shape(name, "onto", in[2], out.shape);
  }
  return {out};
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto& updates = in[1];
  const mx::Shape shape{static_cast<int>(attrs.integer("rows")), updates.shape(-1)};
  auto table = in.size() > 2 ? mx::astype(in[2], mx::float32) : mx::zeros(shape, mx::float32);
  if (updates.size() == 0) {
    return {mx::astype(table, updates.dtype())};
  }
  auto flat = mx::reshape(mx::astype(updates, mx::float32), {-1, 1, shape[1]});
  auto sum = mx::scatter_add(table, mx::flatten(in[0]), flat, 0);
  return {mx::astype(sum, updates.dtype())};
}

Arrays gradient(const Gradient& of) {
  auto& dy = of.cotangents[0];
  Arrays all{of.inputs[0], mx::take(dy, of.inputs[0], 0)};
  if (of.inputs.size() > 2) {
    all.push_back(dy);
  }
  return all;
}

/// The updates of each row, in order: those of row r are number order[starts[r]] to starts[r + 1].
struct Lists {
  int64_t* starts;
  uint32_t* order;
};

void sort(const Lists& lists, const Tensor& indices, int64_t rows) {
  const int64_t count = indices.shape().size();
  auto row_at = [&](int64_t i) {
    const int64_t index = index_at(indices, i);
    const int64_t row = index < 0 ? index + rows : index;
    if (row < 0 || row >= rows) {
      fail(name, "indices must be below ", rows, " rows but one is ", index, ".");
    }
    return row;
  };
  // Counts stand two places up, so that filling the lists leaves each start in its place.
  std::fill_n(lists.starts, rows + 2, int64_t{0});
  for (int64_t i = 0; i < count; ++i) {
    ++lists.starts[row_at(i) + 2];
  }
  for (int64_t r = 0; r < rows; ++r) {
    lists.starts[r + 2] += lists.starts[r + 1];
  }
  for (int64_t i = 0; i < count; ++i) {
    lists.order[lists.starts[row_at(i) + 1]++] = static_cast<uint32_t>(i);
  }
}

void run(const Call& call, Member& member) {
  const Tensor& updates = call.in[1];
  const Dtype dtype = updates.dtype();
  const auto size = static_cast<int64_t>(size_of(dtype));
  const int64_t rows = call.out[0].shape()[0];
  const int64_t n = call.out[0].shape()[1];
  auto* starts = reinterpret_cast<int64_t*>(call.scratch);
  const Lists lists{starts, reinterpret_cast<uint32_t*>(starts + rows + 2)};
  if (member.rank() == 0) {
    sort(lists, call.in[0], rows);
  }
  member.barrier();
  alignas(64) float sums[block];
  alignas(64) float update[block];
  // Rows differ in their number of updates.
  member.dynamic(rows, 16, [&](Range part) {
    for (int64_t r = part.begin; r < part.end; ++r) {
      for (int64_t j = 0; j < n; j += block) {
        const int64_t width = std::min(block, n - j);
        const int64_t at = (r * n + j) * size;
        std::fill_n(sums, width, 0.0f);
        if (call.in.size() > 2) {
          cpu::load_row(dtype, call.in[2].as<std::byte>() + at, sums, width);
        }
        for (int64_t i = lists.starts[r]; i < lists.starts[r + 1]; ++i) {
          const auto* from = updates.as<std::byte>() + (lists.order[i] * n + j) * size;
          cpu::load_row(dtype, from, update, width);
          cpu::axpy_row(1, update, sums, width);
        }
        cpu::store_row(dtype, sums, call.out[0].as<std::byte>() + at, width);
      }
    }
  });
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  const int64_t count = in[0].shape.size();
  if (count > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  const auto rows = static_cast<size_t>(attrs.integer("rows"));
  return {run, (rows + 2) * sizeof(int64_t) + static_cast<size_t>(count) * sizeof(uint32_t)};
}

/// Each row's block looks at all indices: for tables or updates so large that this would take long
/// there is none.
cuda::Kernel cuda_kernel(const Types& in, const Types& out, const Attrs&, const cuda::Device&) {
  const int64_t count = in[0].shape.size();
  const Shape& table = out[0].shape;
  const int64_t pieces = (table[1] + 255) / 256;
  if (!cuda::countable({table[0], table[1]}) || pieces > 65535 || count * table[0] > most_looks) {
    return {};
  }
  cuda::Launch launch;
  launch.source = "route.cuh";
  launch.kernel = "scatter_add<" + cuda::text_of(in[1].dtype) + ", " +
      cuda::index_text(in[0].dtype) + ", " + cuda::text_of(in.size() > 2) + ">";
  launch.grid = {static_cast<uint32_t>(table[0]), static_cast<uint32_t>(pieces), 1};
  launch.block[0] = 256;
  launch.arguments = {
      cuda::in(0),
      cuda::in(1),
      cuda::in(in.size() > 2 ? 2 : 1),
      cuda::out(0),
      cuda::i32(count),
      cuda::i32(table[0]),
      cuda::i32(table[1])};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape indices, int rows, int n, bool onto) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        auto shape = indices;
        shape.push_back(n);
        Arrays in{
            mx::random::randint(-rows, rows, indices, mx::int32, mx::random::key(5)),
            random_case(shape, dtype, 1)};
        if (onto) {
          in.push_back(random_case({rows, n}, dtype, 2));
        }
        return in;
      },
      {{"rows", int64_t{rows}}}};
}

} // namespace

ZMLX_OP(scatter_add)
    .args({"indices", "updates", "*onto"})
    .doc(
        "A table [rows, N], zeros or `onto`, to whose row indices[..] (int32, uint32 or int64; "
        "negative ones count from the end) each of the updates [.., N] is added, in the updates' "
        "dtype. Sums are taken in float32 in the updates' order and rounded once: the same bits for "
        "any number of threads. An index outside the table is an error; on a GPU, "
        "which cannot raise one, its update is left out.")
    .types(types)
    .reference(reference)
    .gradient(gradient)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("rows", {200}, 37, 256, false),
        example("onto", {5, 13}, 31, 33, true),
        example("long rows", {7}, 3, 2051, true),
        example("one", {1}, 1, 1, false),
        example("one row", {100}, 1, 32, true),
        example("no updates", {0}, 7, 8, true),
        example("empty", {3}, 5, 0, false),
    });

} // namespace zmlx
