// zmlx/runtime/bandwidth.h: what this machine's memory and thread team can do at best.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace zmlx {

/// Bytes a second that the thread team reads from a buffer of `bytes`, the best of `repeats`
/// passes.
double read_bandwidth(size_t bytes, int repeats);

/// Three arrays, and what the thread team needs at least to read and to write them: the limit of an
/// operation that reads and writes as much.
class Streams {
 public:
  /// Arrays of `bytes` each, larger than the caches to be meaningful.
  explicit Streams(size_t bytes);

  /// Reads one or two arrays once, and with `write` writes as many bytes as one of them, past the
  /// caches where the processor can do that. Seconds.
  double seconds(int reads, bool write);

 private:
  struct Free {
    void operator()(uint64_t* p) const {
      std::free(p);
    }
  };
  int64_t count_;
  std::array<std::unique_ptr<uint64_t, Free>, 3> arrays_;
};

/// Seconds from handing the team an empty piece of work to its end, the median of `repeats`.
double launch_seconds(int repeats);

/// Seconds of one barrier of the team inside running work, the mean over `repeats`.
double barrier_seconds(int repeats);

} // namespace zmlx
