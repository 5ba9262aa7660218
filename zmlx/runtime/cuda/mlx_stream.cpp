// zmlx/runtime/cuda/mlx_stream.cpp: the few functions of MLX's CUDA backend that are called,
// declared as weak here because its headers need CUDA's.
#include "zmlx/runtime/cuda/mlx_stream.h"

#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>

#include "zmlx/runtime/cuda/nvrtc.h"

struct dim3 {
  unsigned x, y, z;
};

namespace mlx::core::cu {

class CommandEncoder {
 public:
  __attribute__((weak)) void set_input_array(const array& arr);
  __attribute__((weak)) void set_output_array(const array& arr);
  __attribute__((weak)) void add_kernel_node_raw(
      CUfunc_st* function,
      dim3 grid,
      dim3 block,
      dim3 cluster,
      uint32_t shared,
      void** parameters);
  __attribute__((weak)) void add_completed_handler(std::function<void()> task);
  __attribute__((weak)) void commit();
};

__attribute__((weak)) CommandEncoder& get_command_encoder(Stream s);

} // namespace mlx::core::cu

namespace zmlx::cuda {
namespace {

namespace cu = mlx::core::cu;

constexpr int oldest_architecture = 80;
/// `Device& device_; CudaStream stream_; ...` in MLX's CommandEncoder; a CudaStream is one handle.
constexpr size_t stream_offset = 8;

bool has_encoder() {
  return &cu::get_command_encoder != nullptr;
}

std::string find_obstacle() {
  if (!has_encoder()) {
    return "MLX's GPU is not one of CUDA";
  }
  if (!driver()) {
    return why_no_driver();
  }
  std::string why;
  if (nvrtc_version(&why).empty()) {
    return why;
  }
  try {
    int architecture = gpu().device.architecture;
    if (architecture < oldest_architecture) {
      return "the GPU's compute capability is " + std::to_string(architecture) +
          " / 10 but must be 8.0 or more";
    }
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

} // namespace

std::string why_not() {
  static const std::string once = find_obstacle();
  return once;
}

std::optional<Device> device() {
  return why_not().empty() ? std::optional(gpu().device) : std::nullopt;
}

Stream stream_of(const mx::Stream& stream) {
  static std::mutex mutex;
  static std::set<Stream> known;
  if (!has_encoder()) {
    throw std::runtime_error("[cuda] " + why_not() + ".");
  }
  Stream handle = nullptr;
  std::memcpy(
      &handle,
      reinterpret_cast<const std::byte*>(&cu::get_command_encoder(stream)) + stream_offset,
      sizeof(void*));
  std::lock_guard lock(mutex);
  if (!known.contains(handle)) {
    auto& d = *driver();
    Context context = nullptr;
    auto& expected = gpu(stream.device.index).context;
    if (!handle || d.stream_context(handle, &context) != 0 || context != expected) {
      throw std::runtime_error("[cuda] this MLX keeps its stream elsewhere than in 0.32.4.");
    }
    known.insert(handle);
  }
  return handle;
}

void commit(const mx::Stream& stream) {
  cu::get_command_encoder(stream).commit();
}

void on_completion(const mx::Stream& stream, std::function<void()> handler) {
  cu::get_command_encoder(stream).add_completed_handler(std::move(handler));
}

void add_input(const mx::Stream& stream, const mx::array& a) {
  cu::get_command_encoder(stream).set_input_array(a);
}

void add_output(const mx::Stream& stream, const mx::array& a) {
  cu::get_command_encoder(stream).set_output_array(a);
}

void add_kernel(
    const mx::Stream& stream,
    Function function,
    const std::array<uint32_t, 3>& grid,
    const std::array<uint32_t, 3>& block,
    size_t shared,
    void** parameters) {
  auto dims = [](auto& v) { return dim3{v[0], v[1], v[2]}; };
  cu::get_command_encoder(stream).add_kernel_node_raw(
      function, dims(grid), dims(block), {1, 1, 1}, static_cast<uint32_t>(shared), parameters);
}

} // namespace zmlx::cuda
