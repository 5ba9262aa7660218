// zmlx/runtime/cuda/memory.cpp: stream-ordered allocations, kept for reuse.
#include "zmlx/runtime/cuda/memory.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_set>

namespace zmlx::cuda {
namespace {

constexpr size_t granule = 4096;
constexpr size_t kept_share = 64; // of a GPU's memory, in returned buffers of a stream

/// Buffers by size for each stream. Lives until the process ends, as MLX's arrays may.
class Pool {
 public:
  static Pool& instance() {
    static auto* pool = new Pool;
    return *pool;
  }

  Buffer* take(const Gpu& gpu, Stream stream, size_t bytes) {
    size_t size = std::max(granule, (bytes + granule - 1) / granule * granule);
    std::lock_guard lock(mutex_);
    auto& shelf = shelves_[stream];
    Buffer* buffer;
    if (auto it = shelf.free.find(size); it != shelf.free.end()) {
      buffer = it->second;
      shelf.free.erase(it);
      shelf.bytes -= size;
    } else {
      auto& d = *driver();
      Address address = 0;
      d.check(d.set_context(gpu.context), "cuCtxSetCurrent");
      d.check(d.allocate(&address, size, stream), "cuMemAllocAsync");
      buffer = new Buffer{reinterpret_cast<void*>(address), size, 0};
    }
    live_.insert(buffer);
    return buffer;
  }

  /// MLX gives a buffer back when all that uses it is done; by then it may have moved its contents
  /// to memory shared with the CPU and freed ours.
  void put_back(const Gpu& gpu, Stream stream, Buffer* buffer) {
    std::lock_guard lock(mutex_);
    live_.erase(buffer);
    auto& d = *driver();
    auto& shelf = shelves_[stream];
    if (buffer->device >= 0 && shelf.bytes + buffer->size <= gpu.memory_bytes / kept_share) {
      shelf.free.emplace(buffer->size, buffer);
      shelf.bytes += buffer->size;
      return;
    }
    d.set_context(gpu.context);
    if (buffer->device >= 0) {
      d.free_async(reinterpret_cast<Address>(buffer->data), gpu.stream);
    } else if (gpu.is_managed) {
      d.free(reinterpret_cast<Address>(buffer->data));
    } else {
      d.free_host(buffer->data);
    }
    delete buffer;
  }

  bool owns(const void* buffer) {
    std::lock_guard lock(mutex_);
    return live_.contains(static_cast<const Buffer*>(buffer));
  }

 private:
  struct Shelf {
    std::multimap<size_t, Buffer*> free;
    size_t bytes = 0;
  };
  std::mutex mutex_;
  std::map<Stream, Shelf> shelves_;
  std::unordered_set<const Buffer*> live_;
};

} // namespace

Address workspace(const Gpu& gpu, Stream stream, size_t bytes) {
  struct Block {
    Address address = 0;
    size_t bytes = 0;
  };
  static std::mutex mutex;
  static auto* blocks = new std::map<Stream, Block>;
  std::lock_guard lock(mutex);
  auto& block = (*blocks)[stream];
  if (block.bytes < bytes || !block.address) {
    auto& d = *driver();
    d.check(d.set_context(gpu.context), "cuCtxSetCurrent");
    if (block.address) {
      d.check(d.free_async(block.address, stream), "cuMemFreeAsync");
      block = {};
    }
    size_t size = std::max(granule, bytes);
    d.check(d.allocate(&block.address, size, stream), "cuMemAllocAsync");
    block.bytes = size;
  }
  return block.address;
}

Address counters(const Gpu& gpu, Stream stream) {
  static std::mutex mutex;
  static auto* known = new std::map<Stream, Address>;
  std::lock_guard lock(mutex);
  auto& address = (*known)[stream];
  if (!address) {
    constexpr size_t bytes = max_counters * sizeof(int32_t);
    auto& d = *driver();
    d.check(d.set_context(gpu.context), "cuCtxSetCurrent");
    d.check(d.allocate(&address, bytes, stream), "cuMemAllocAsync");
    d.check(d.fill(address, 0, bytes, stream), "cuMemsetD8Async");
  }
  return address;
}

mx::allocator::Data allocate(const Gpu& gpu, Stream stream, size_t bytes) {
  auto* buffer = Pool::instance().take(gpu, stream, bytes);
  return {mx::allocator::Buffer(buffer), [&gpu, stream](mx::allocator::Buffer returned) {
            Pool::instance().put_back(gpu, stream, static_cast<Buffer*>(returned.ptr()));
          }};
}

bool is_ours(const mx::array& a) {
  return Pool::instance().owns(a.buffer().ptr());
}

} // namespace zmlx::cuda
