// zmlx/kernel/cuda/launch.h: a CUDA kernel made ready for given types: which instantiations of
// which source to launch, and on what. Knows neither the driver nor MLX.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zmlx::cuda {

/// What a kernel may ask of the device it will run on.
struct Device {
  int architecture = 80; // compute capability: 80, 90, 100
  int multiprocessors = 108;
  size_t shared_bytes = 163 * 1024; // the most dynamic shared memory of one block
};

/// One argument of a launch, in the order of the kernel's parameters.
struct Argument {
  enum class Kind : uint8_t {
    in, // Pointer to input `index`, `offset` bytes in
    out, // Pointer to output `index`, `offset` bytes in
    scratch, // Pointer to the call's scratch memory, `offset` bytes in
    counter, // Pointer to int32_t number `index`; 0 when the launch starts, and to be left so
    in_dim, // Extent: axis `axis` of input `index`; read when the launch runs, as KV buffers grow
    out_dim,
    i32, // int32_t
    f32, // float
    extent, // Extent of value `offset`
  };
  Kind kind;
  int index = 0;
  int axis = 0;
  size_t offset = 0;
  int32_t integer = 0;
  float real = 0;
};

inline Argument in(int index, size_t offset = 0) {
  return {Argument::Kind::in, index, 0, offset, 0, 0};
}
inline Argument out(int index, size_t offset = 0) {
  return {Argument::Kind::out, index, 0, offset, 0, 0};
}
inline Argument scratch(size_t offset = 0) {
  return {Argument::Kind::scratch, 0, 0, offset, 0, 0};
}
inline Argument counter(int index = 0) {
  return {Argument::Kind::counter, index, 0, 0, 0, 0};
}
inline Argument in_dim(int index, int axis) {
  return {Argument::Kind::in_dim, index, axis, 0, 0, 0};
}
inline Argument out_dim(int index, int axis) {
  return {Argument::Kind::out_dim, index, axis, 0, 0, 0};
}
inline Argument i32(int64_t value) {
  return {Argument::Kind::i32, 0, 0, 0, static_cast<int32_t>(value), 0};
}
inline Argument f32(double value) {
  return {Argument::Kind::f32, 0, 0, 0, 0, static_cast<float>(value)};
}

inline Argument extent(int64_t value) {
  return {Argument::Kind::extent, 0, 0, static_cast<size_t>(value), 0, 0};
}

/// Numbers of counters are below this.
inline constexpr int max_counters = 1024;

/// One launch of a `__global__` function template.
struct Launch {
  std::string source; // a file of zmlx/kernel/cuda: "linear.cuh"; "": all is generated
  std::string kernel; // the instantiation: "linear_rows<bf16, Affine<4, 64>, 1>"
  std::array<uint32_t, 3> grid{1, 1, 1};
  std::array<uint32_t, 3> block{1, 1, 1};
  size_t shared = 0; // dynamic shared memory, bytes
  std::vector<Argument> arguments;
  const std::string* generated = nullptr; // a kernel behind the source's text, from shared_text()

  const std::string& text() const {
    static const std::string nothing;
    return generated ? *generated : nothing;
  }
};

/// One op for given types: launches in order on one stream. Empty: there is no kernel.
struct Kernel {
  std::vector<Launch> launches;
  size_t scratch =
      0; // bytes of device memory that the launches share; 256-byte aligned, not cleared
  bool strided = false; // whether it reads inputs by strides that its arguments give

  explicit operator bool() const {
    return !launches.empty();
  }
};

/// The one copy of a generated text that all equal ones share until the process ends, as their
/// functions do: where it lies tells it from others.
const std::string* shared_text(std::string text);

/// The text of a source file in zmlx/kernel/cuda, as built into the library, its includes of other
/// such files resolved (each once). Throws std::invalid_argument for a file that is not there.
std::string source_text(std::string_view file);

} // namespace zmlx::cuda
