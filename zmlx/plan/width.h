// zmlx/plan/width.h: how many threads a run gets: all of them, or one where the others are held up
// by other programs.
#pragma once

namespace zmlx {

/// Learns from the time of each run. Barriers make a team as slow as its slowest member, so on a
/// machine that is busy with other work one thread alone may be several times faster.
class Width {
 public:
  enum class Choice { all, one };

  /// What the next run is to use.
  Choice next();
  /// What a run took.
  void note(Choice choice, double seconds);

 private:
  static constexpr int first_interval = 16;
  static constexpr int longest_interval = 1024;

  double recent_[2] = {0, 0}; // moving averages by choice; 0: not known
  Choice best_ = Choice::all;
  int since_trial_ = 0; // runs with the better choice since the other was tried
  int interval_ = first_interval; // grows while trials confirm the choice
};

} // namespace zmlx
