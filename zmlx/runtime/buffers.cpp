// zmlx/runtime/buffers.cpp: large buffers that are kept when they are freed.
#include "zmlx/runtime/buffers.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <optional>
#include <vector>

#include "mlx/allocator.h"
#include "zmlx/runtime/error.h"

namespace zmlx {
namespace {

using mx::allocator::Buffer;

constexpr size_t huge_from = size_t{4} << 20;
constexpr size_t kept_from = size_t{16} << 20;
constexpr size_t line = 64;

size_t kept_limit() {
  size_t megabytes = 256;
  if (const char* text = std::getenv("ZMLX_KEPT_MB"); text && *text) {
    const char* end = text + std::strlen(text);
    auto [stop, error] = std::from_chars(text, end, megabytes);
    if (error != std::errc() || stop != end || megabytes > (size_t{1} << 40)) {
      fail("zmlx", "ZMLX_KEPT_MB must be a number of megabytes but is '", text, "'.");
    }
  }
  return megabytes << 20;
}

/// Freed buffers, the longest kept first.
class Kept {
 public:
  explicit Kept(size_t limit) : limit_(limit) {}

  /// A buffer of at least that size and little more.
  std::optional<Buffer> take(size_t size) {
    std::lock_guard lock(mutex_);
    auto fits = [&](const Entry& e) { return e.size >= size && e.size <= size + size / 8; };
    auto it = std::find_if(entries_.begin(), entries_.end(), fits);
    if (it == entries_.end()) {
      return {};
    }
    Buffer buffer = it->buffer;
    bytes_ -= it->size;
    entries_.erase(it);
    return buffer;
  }

  void put(Buffer buffer) {
    auto& allocator = mx::allocator::allocator();
    std::lock_guard lock(mutex_);
    entries_.push_back({buffer, allocator.size(buffer)});
    bytes_ += entries_.back().size;
    while (bytes_ > limit_) {
      bytes_ -= entries_.front().size;
      allocator.free(entries_.front().buffer);
      entries_.erase(entries_.begin());
    }
  }

 private:
  struct Entry {
    Buffer buffer;
    size_t size;
  };

  const size_t limit_;
  std::mutex mutex_;
  std::vector<Entry> entries_;
  size_t bytes_ = 0;
};

Kept& kept() {
  // Never destroyed: arrays may be freed while the process ends.
  static Kept* instance = new Kept(kept_limit());
  return *instance;
}

/// Advice: where the system does not take it, the memory is as before.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t size) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t page = 4096;
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

} // namespace

void allocate(mx::array& out) {
  if (out.nbytes() < kept_from) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    if (out.nbytes() >= huge_from) {
      ask_for_huge_pages(out.data<char>(), out.nbytes());
    }
    return;
  }
  const size_t size = out.nbytes() + line;
  auto buffer = kept().take(size);
  if (!buffer) {
    buffer = mx::allocator::allocator().malloc(size);
    ask_for_huge_pages(buffer->raw_ptr(), size);
  }
  mx::array whole(out.shape(), out.dtype(), nullptr, {});
  whole.set_data({*buffer, [](Buffer freed) { kept().put(freed); }});
  const auto past = reinterpret_cast<uintptr_t>(buffer->raw_ptr()) % line;
  const size_t skip = (line - past) % line / out.itemsize();
  out.copy_shared_buffer(
      whole, whole.strides(), whole.flags(), whole.data_size(), static_cast<int64_t>(skip));
}

} // namespace zmlx
