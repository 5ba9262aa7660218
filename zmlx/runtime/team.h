// zmlx/runtime/team.h: the thread team that walks a plan: every member runs the same code, barriers
// keep them in step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace zmlx {

/// Half-open range of work.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
};

class Team;

/// One thread's view of the team inside Team::run.
class Member {
 public:
  Member(Team& team, int rank, int size) : team_(team), rank_(rank), size_(size) {}

  int rank() const {
    return rank_;
  }
  int size() const {
    return size_;
  }
  /// Waits until every member has arrived. All members must call it equally often.
  void barrier();
  /// This member's equal part of [0, n), cut at multiples of `grain`. Same answer each time: no
  /// shared state.
  Range split(int64_t n, int64_t grain = 1) const;
  /// Calls f(Range) on chunks of `grain` that members take in turn, then barrier(). For uneven work
  /// or a busy machine.
  template <typename F>
  void dynamic(int64_t n, int64_t grain, F&& f);

 private:
  /// The next chunk's start, from a counter that all members share and that barrier() rewinds.
  int64_t take(int64_t grain);

  Team& team_;
  int rank_;
  int size_;
};

/// Threads that live as long as the process: they spin briefly for new work, then sleep.
class Team {
 public:
  /// The process's team: ZMLX_NUM_THREADS members, by default the cores that this process may use
  /// (affinity and cgroup limit). Made on first use, and made anew in a forked child.
  static Team& instance();

  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const;
  /// Runs body(member) on every member, the caller being rank 0, and returns when all have
  /// finished. The first exception thrown by a member is rethrown here; the others are released
  /// from their barriers. Callers on other threads wait their turn. Not reentrant.
  void run(const std::function<void(Member&)>& body);
  /// The same with the caller as the only member; the other threads are left alone.
  void run_alone(const std::function<void(Member&)>& body);

 private:
  friend class Member;
  struct State;
  std::unique_ptr<State> state_;
};

template <typename F>
void Member::dynamic(int64_t n, int64_t grain, F&& f) {
  for (int64_t i = take(grain); i < n; i = take(grain)) {
    f(Range{i, i + grain < n ? i + grain : n});
  }
  barrier();
}

} // namespace zmlx
