// zmlx/runtime/cuda/mlx_stream.h: MLX's CUDA streams and buffers as the driver sees them. Loads
// with an MLX that has no CUDA, and then says so.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "mlx/array.h"
#include "mlx/stream.h"
#include "zmlx/runtime/cuda/driver.h"

namespace zmlx::cuda {

namespace mx = mlx::core;

/// Why kernels cannot run on MLX's GPU, in words; empty where they can.
std::string why_not();
/// The GPU for plans made now; empty where why_not() has something to say.
std::optional<Device> device();

/// MLX's stream as the driver's. Throws std::runtime_error when it is not what we take it for.
Stream stream_of(const mx::Stream& stream);
/// Launches what MLX has queued so far, so that what is launched next comes after it.
void commit(const mx::Stream& stream);
/// Calls `handler` on a thread of MLX's when the stream has done all that was launched by now.
void on_completion(const mx::Stream& stream, std::function<void()> handler);

/// A kernel as a node of MLX's own graph, which orders it by the arrays named before.
void add_input(const mx::Stream& stream, const mx::array& a);
void add_output(const mx::Stream& stream, const mx::array& a);
void add_kernel(
    const mx::Stream& stream,
    Function function,
    const std::array<uint32_t, 3>& grid,
    const std::array<uint32_t, 3>& block,
    size_t shared,
    void** parameters);

/// What MLX's buffers point to: allocator.h of its CUDA backend.
struct Buffer {
  void* data;
  size_t size;
  int device; // -1: memory that the CPU reaches too
};
inline const Buffer& buffer_of(const mx::array& a) {
  return *static_cast<const Buffer*>(a.buffer().ptr());
}
/// Where an evaluated array begins, for the GPU. MLX's data<T>() would move it to the CPU.
inline Address address_of(const mx::array& a) {
  return reinterpret_cast<Address>(buffer_of(a).data) + static_cast<Address>(a.offset());
}

} // namespace zmlx::cuda
