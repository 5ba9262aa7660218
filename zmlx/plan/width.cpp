// zmlx/plan/width.cpp: moving averages, and a trial of the other choice from time to time.
#include "zmlx/plan/width.h"

#include <algorithm>

namespace zmlx {
namespace {

constexpr double weight_of_newest = 0.25;
constexpr double clearly_faster = 0.9; // a change of mind needs more than noise
constexpr double suddenly_slower = 1.5; // asks for a trial at once

int index(Width::Choice choice) {
  return static_cast<int>(choice);
}

Width::Choice other(Width::Choice choice) {
  return choice == Width::Choice::all ? Width::Choice::one : Width::Choice::all;
}

} // namespace

Width::Choice Width::next() {
  return since_trial_ >= interval_ ? other(best_) : best_;
}

void Width::note(Choice choice, double seconds) {
  double& recent = recent_[index(choice)];
  if (choice == best_) {
    bool is_slump = recent > 0 && seconds > suddenly_slower * recent;
    recent = recent > 0 ? recent + weight_of_newest * (seconds - recent) : seconds;
    since_trial_ = is_slump ? std::max(since_trial_ + 1, std::min(interval_, first_interval))
                            : since_trial_ + 1;
    return;
  }
  recent = seconds;
  since_trial_ = 0;
  if (seconds < clearly_faster * recent_[index(best_)]) {
    best_ = choice;
    interval_ = first_interval;
  } else {
    interval_ = std::min(2 * interval_, longest_interval);
  }
}

} // namespace zmlx
