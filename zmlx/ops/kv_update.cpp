// zmlx/ops/kv_update.cpp: new rows written into a KV buffer at a position known when it runs.
#include <cstring>

#include "mlx/ops.h"
#include "zmlx/kernel/cuda/rope.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

Types types(const Types& in, const Attrs&) {
  expect_inputs("kv_update", in, 3);
  expect_rank("kv_update", "buffer", in[0], 4);
  expect_rank("kv_update", "x", in[1], 4);
  expect_dtype("kv_update", "x", in[1], in[0].dtype);
  auto& buffer = in[0].shape;
  auto& x = in[1].shape;
  if (x[0] != buffer[0] || x[1] != buffer[1] || x[3] != buffer[3] || x[2] > buffer[2]) {
    fail(
        "kv_update",
        "x must be rows of a buffer ",
        to_string(buffer),
        " but got shape ",
        to_string(x),
        ".");
  }
  expect_offset("kv_update", in[2]);
  return {in[0]};
}

Arrays reference(const Arrays& in, const Attrs&) {
  return {mx::slice_update(in[0], in[1], mx::reshape(in[2], {1}), {2})};
}

void run(const Call& call, Member& member) {
  const Tensor& x = call.in[1];
  const int64_t tokens = x.shape()[2];
  // The buffer may have grown since the kernel was prepared.
  const int64_t capacity = call.out[0].shape()[2];
  const int64_t offset = *call.in[2].as<int32_t>();
  expect_room("kv_update", offset, tokens, capacity);
  const auto row = x.shape()[3] * static_cast<int64_t>(size_of(x.dtype()));
  auto part = member.split(x.shape()[0] * x.shape()[1]);
  for (int64_t head = part.begin; head < part.end; ++head) {
    std::memcpy(
        call.out[0].as<std::byte>() + (head * capacity + offset) * row,
        x.as<std::byte>() + head * tokens * row,
        static_cast<size_t>(tokens * row));
  }
}

CpuKernel kernel(const Types&, const Types&, const Attrs&) {
  return {run};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs&, const cuda::Device&) {
  return cuda::kv_update(in[1].shape, size_of(in[1].dtype));
}

/// Only the new rows are written; the rest stays where it is.
size_t traffic(const Types& in, const Types&, const Attrs&) {
  return 2 * in[1].bytes();
}

Case example(std::string name, mx::Shape buffer, int tokens, int offset) {
  return {
      std::move(name),
      [=](mx::Dtype dtype) {
        mx::Shape rows = buffer;
        rows[2] = tokens;
        return Arrays{
            random_case(buffer, dtype, 1), random_case(rows, dtype, 2), mx::array(offset)};
      },
      {}};
}

} // namespace

ZMLX_OP(kv_update)
    .args({"buffer", "x", "offset"})
    .doc(
        "buffer [B, H, C, D] with rows [offset, offset + T) of each head replaced by x [B, H, T, "
        "D]; offset: one int32. The buffer is written in place when nothing else holds it. Fails "
        "when the rows do not fit.")
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .traffic(traffic)
    .in_place(0, 0)
    .cases({
        example("decode", {1, 4, 256, 64}, 1, 100),
        example("prompt", {2, 3, 40, 33}, 37, 3),
        example("whole", {1, 2, 8, 16}, 8, 0),
        example("empty", {1, 2, 8, 16}, 0, 8),
    });

} // namespace zmlx
