// zmlx/runtime/bandwidth.cpp: a sum over a large buffer, and empty work, timed.
#include "zmlx/runtime/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "zmlx/runtime/error.h"
#include "zmlx/runtime/team.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace zmlx {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t line = 64 / sizeof(uint64_t);
constexpr int64_t streams = 4; // independent sums: one chain of additions would be the limit

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

void check(const char* name, const char* what, bool ok) {
  if (!ok) {
    fail(name, what, " must be positive.");
  }
}

// Words that are fetched, into the second cache, before they are read: as kernels do. Without,
// some CPUs read a third less.
constexpr int64_t ahead = 4096 / sizeof(uint64_t);

uint64_t sum(const uint64_t* values, Range range) {
  uint64_t sums[streams * line] = {};
  for (int64_t i = range.begin; i < range.end; i += streams * line) {
    for (int64_t j = 0; j < streams * line; j += line) {
      __builtin_prefetch(values + std::min(i + ahead + j, range.end - 1), 0, 2);
    }
    for (int64_t j = 0; j < streams * line; ++j) {
      sums[j] += values[i + j];
    }
  }
  uint64_t total = 0;
  for (auto part : sums) {
    total += part;
  }
  return total;
}

/// to = a, or a + b, without reading the lines that are written.
void write_past_cache(const uint64_t* a, const uint64_t* b, uint64_t* to, Range range) {
#if defined(__SSE2__)
  auto load = [](const uint64_t* p) { return _mm_load_si128(reinterpret_cast<const __m128i*>(p)); };
  for (int64_t i = range.begin; i < range.end; i += line) {
    for (int64_t j = i; j < i + line; j += 2) {
      const __m128i v = b ? _mm_add_epi64(load(a + j), load(b + j)) : load(a + j);
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + j), v);
    }
  }
  _mm_sfence();
#else
  for (int64_t i = range.begin; i < range.end; ++i) {
    to[i] = b ? a[i] + b[i] : a[i];
  }
#endif
}

} // namespace

double read_bandwidth(size_t bytes, int repeats) {
  check("read_bandwidth", "repeats", repeats > 0);
  constexpr int64_t grain = streams * line;
  int64_t count = static_cast<int64_t>(bytes / sizeof(uint64_t)) / grain * grain;
  check("read_bandwidth", "the buffer's size in blocks of 256 bytes", count > 0);
  // Ones, not zeros: pages that were never written share one page of zeros.
  std::vector<uint64_t> values(static_cast<size_t>(count), 1);
  std::atomic<uint64_t> total{0}; // used, so that no pass can be left out
  double best = 0;
  auto& team = Team::instance();
  for (int i = 0; i < repeats; ++i) {
    auto start = Clock::now();
    team.run([&](Member& member) { total += sum(values.data(), member.split(count, grain)); });
    double rate = static_cast<double>(count) * sizeof(uint64_t) / seconds_since(start);
    best = std::max(best, rate);
  }
  if (total != static_cast<uint64_t>(count) * static_cast<uint64_t>(repeats)) {
    fail("read_bandwidth", "memory gave back another sum than was written.");
  }
  return best;
}

Streams::Streams(size_t bytes)
    : count_(static_cast<int64_t>(bytes / sizeof(uint64_t)) / (streams * line) * streams * line) {
  check("Streams", "the arrays' size in blocks of 256 bytes", count_ > 0);
  constexpr size_t huge_page = size_t{2} << 20;
  const size_t size = static_cast<size_t>(count_) * sizeof(uint64_t);
  for (auto& array : arrays_) {
    array.reset(static_cast<uint64_t*>(
        std::aligned_alloc(huge_page, (size + huge_page - 1) / huge_page * huge_page)));
    if (!array) {
      throw std::bad_alloc();
    }
  }
#ifdef MADV_HUGEPAGE
  // As MLX's arrays are, the sources are in small pages; as zmlx's are, the target is in huge ones.
  madvise(arrays_[2].get(), size, MADV_HUGEPAGE);
#endif
  for (auto& array : arrays_) {
    std::fill_n(array.get(), count_, uint64_t{1});
  }
}

double Streams::seconds(int reads, bool write) {
  if (reads < 1 || reads > 2) {
    fail("Streams", "reads must be 1 or 2 but is ", reads, ".");
  }
  const uint64_t* a = arrays_[0].get();
  const uint64_t* b = reads == 2 ? arrays_[1].get() : nullptr;
  std::atomic<uint64_t> total{0}; // used, so that no pass can be left out
  auto start = Clock::now();
  Team::instance().run([&](Member& member) {
    constexpr int64_t chunk = (256 << 10) / sizeof(uint64_t);
    member.dynamic(count_, chunk, [&](Range range) {
      if (write) {
        write_past_cache(a, b, arrays_[2].get(), range);
      } else {
        total += sum(a, range) + (b ? sum(b, range) : 0);
      }
    });
  });
  const double seconds = seconds_since(start);
  if (total != (write ? 0 : static_cast<uint64_t>(count_ * reads))) {
    fail("Streams", "memory gave back another sum than was written.");
  }
  return seconds;
}

double launch_seconds(int repeats) {
  check("launch_seconds", "repeats", repeats > 0);
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i) {
    auto start = Clock::now();
    Team::instance().run([](Member&) {});
    times.push_back(seconds_since(start));
  }
  auto middle = times.begin() + static_cast<int64_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

double barrier_seconds(int repeats) {
  check("barrier_seconds", "repeats", repeats > 0);
  auto start = Clock::now();
  Team::instance().run([&](Member& member) {
    for (int i = 0; i < repeats; ++i) {
      member.barrier();
    }
  });
  return seconds_since(start) / repeats;
}

} // namespace zmlx
