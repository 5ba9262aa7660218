// zmlx/runtime/team.cpp: the threads of a team, their barrier, and how many of them there should
// be.
#include "zmlx/runtime/team.h"

#include <pthread.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "zmlx/runtime/cores.h"
#include "zmlx/runtime/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace zmlx {
namespace {

constexpr int spin_limit = 4000; // pauses, some tens of microseconds
constexpr int yield_limit = 16;

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int default_size() {
  if (const char* text = std::getenv("ZMLX_NUM_THREADS"); text && *text) {
    int size = 0;
    const char* end = text + std::strlen(text);
    auto [stop, error] = std::from_chars(text, end, size);
    if (error != std::errc() || stop != end || size < 1 || size > 1024) {
      fail("zmlx", "ZMLX_NUM_THREADS must be a number from 1 to 1024 but is '", text, "'.");
    }
    return size;
  }
  return std::min(affinity_cores(), cgroup_cores().value_or(1024));
}

/// Thrown in members that wait at a barrier which a failed member will never reach.
struct Released {};

} // namespace

struct Team::State {
  explicit State(int members)
      : size(members), spins(members <= affinity_cores() ? spin_limit : 0) {}

  /// Waits until `word` differs from `old`: spins, yields, then sleeps.
  void wait_change(const std::atomic<uint32_t>& word, uint32_t old) const {
    for (int i = 0; i < spins; ++i) {
      if (word.load(std::memory_order_acquire) != old) {
        return;
      }
      pause();
    }
    for (int i = 0; i < yield_limit; ++i) {
      if (word.load(std::memory_order_acquire) != old) {
        return;
      }
      std::this_thread::yield();
    }
    while (word.load(std::memory_order_acquire) == old) {
      word.wait(old, std::memory_order_acquire);
    }
  }

  static void advance(std::atomic<uint32_t>& word) {
    word.fetch_add(1, std::memory_order_release);
    word.notify_all();
  }

  /// Runs the body as one member; an exception is kept and the others are let go.
  void work(Team& team, int rank) {
    Member member(team, rank, size);
    try {
      (*body)(member);
    } catch (const Released&) {
    } catch (...) {
      std::lock_guard lock(error_mutex);
      if (!error) {
        error = std::current_exception();
      }
      failed.store(true, std::memory_order_release);
      advance(epoch);
    }
  }

  void serve(Team& team, int rank) {
    for (uint32_t seen = 0;;) {
      wait_change(start, seen);
      // One step at a time: run() starts no new work before every member has finished the last.
      ++seen;
      if (stopping) {
        return;
      }
      work(team, rank);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        advance(finished);
      }
    }
  }

  const int size;
  const int spins;
  std::vector<std::thread> threads;
  std::mutex callers;
  const std::function<void(Member&)>* body = nullptr;
  bool stopping = false;
  std::mutex error_mutex;
  std::exception_ptr error;

  // What members write often lies on lines of its own.
  alignas(64) std::atomic<uint32_t> start{0};
  alignas(64) std::atomic<int> running{0};
  alignas(64) std::atomic<uint32_t> finished{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> epoch{0};
  std::atomic<bool> failed{false};
  alignas(64) std::atomic<int64_t> next{0};
};

void Member::barrier() {
  if (size_ == 1) {
    team_.state_->next.store(0, std::memory_order_relaxed);
    return;
  }
  auto& s = *team_.state_;
  const uint32_t epoch = s.epoch.load(std::memory_order_acquire);
  if (s.failed.load(std::memory_order_acquire)) {
    throw Released{};
  }
  if (s.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    s.arrived.store(0, std::memory_order_relaxed);
    s.next.store(0, std::memory_order_relaxed);
    Team::State::advance(s.epoch);
  } else {
    s.wait_change(s.epoch, epoch);
  }
  if (s.failed.load(std::memory_order_acquire)) {
    throw Released{};
  }
}

Range Member::split(int64_t n, int64_t grain) const {
  const int64_t chunks = (n + grain - 1) / grain;
  const int64_t begin = chunks * rank_ / size_ * grain;
  const int64_t end = chunks * (rank_ + 1) / size_ * grain;
  return {std::min(begin, n), std::min(end, n)};
}

int64_t Member::take(int64_t grain) {
  return team_.state_->next.fetch_add(grain, std::memory_order_relaxed);
}

Team::Team(int size) : state_(std::make_unique<State>(size)) {
  if (size < 1) {
    fail("Team", "the number of members must be at least 1 but is ", size, ".");
  }
  for (int rank = 1; rank < size; ++rank) {
    state_->threads.emplace_back([this, rank] { state_->serve(*this, rank); });
  }
}

Team::~Team() {
  state_->stopping = true;
  State::advance(state_->start);
  for (auto& thread : state_->threads) {
    thread.join();
  }
}

int Team::size() const {
  return state_->size;
}

void Team::run_alone(const std::function<void(Member&)>& body) {
  auto& s = *state_;
  std::lock_guard lock(s.callers);
  s.next.store(0, std::memory_order_relaxed);
  Member member(*this, 0, 1);
  body(member);
}

void Team::run(const std::function<void(Member&)>& body) {
  auto& s = *state_;
  std::lock_guard lock(s.callers);
  s.body = &body;
  s.error = nullptr;
  s.failed.store(false, std::memory_order_relaxed);
  s.arrived.store(0, std::memory_order_relaxed);
  s.next.store(0, std::memory_order_relaxed);
  if (s.size > 1) {
    const uint32_t finished = s.finished.load(std::memory_order_acquire);
    s.running.store(s.size - 1, std::memory_order_relaxed);
    State::advance(s.start);
    s.work(*this, 0);
    s.wait_change(s.finished, finished);
  } else {
    s.work(*this, 0);
  }
  if (s.error) {
    std::rethrow_exception(std::exchange(s.error, nullptr));
  }
}

namespace {

std::mutex instance_mutex;
std::atomic<Team*> instance_team{nullptr};

// A child has the forking thread alone. Its parent's team is left as it is: there is nobody to
// join.
void before_fork() {
  instance_mutex.lock();
}
void after_fork_in_parent() {
  instance_mutex.unlock();
}
void after_fork_in_child() {
  instance_team.store(nullptr, std::memory_order_relaxed);
  instance_mutex.unlock();
}

} // namespace

Team& Team::instance() {
  if (Team* team = instance_team.load(std::memory_order_acquire)) {
    return *team;
  }
  std::lock_guard lock(instance_mutex);
  if (Team* team = instance_team.load(std::memory_order_acquire)) {
    return *team;
  }
  static const int hooks = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  static_cast<void>(hooks);
  // Never destroyed: threads may still be at work while the process ends.
  Team* team = new Team(default_size());
  instance_team.store(team, std::memory_order_release);
  return *team;
}

} // namespace zmlx
