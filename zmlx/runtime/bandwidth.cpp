// zmlx/runtime/bandwidth.cpp: a sum over a large buffer, and empty work, timed.
#include "zmlx/runtime/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "zmlx/runtime/error.h"
#include "zmlx/runtime/team.h"

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

uint64_t sum(const uint64_t* values, Range range) {
  uint64_t sums[streams * line] = {};
  for (int64_t i = range.begin; i < range.end; i += streams * line) {
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
