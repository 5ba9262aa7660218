// zmlx/kernel/lang/rows.cpp: a pass for each depth of nested reductions.
#include "zmlx/kernel/lang/rows.h"

#include <algorithm>
#include <limits>
#include <string_view>

namespace zmlx::lang {
namespace {

constexpr int never = std::numeric_limits<int>::max();

class Scheduler {
 public:
  Scheduler(const Program& program, Keep keep)
      : steps_(program.steps),
        results_(program.results),
        keep_(keep),
        depths_(steps_.size(), 0),
        expensive_(steps_.size(), false),
        first_(steps_.size(), never) {
    for (size_t i = 0; i < steps_.size(); ++i) {
      auto& step = steps_[i];
      expensive_[i] = step.kind == Kind::call &&
          (step.function->typing == Typing::floating ||
           step.function->name == std::string_view("pow"));
      for (int arg : step.args) {
        auto a = static_cast<size_t>(arg);
        depths_[i] = std::max(depths_[i], depths_[a]);
        expensive_[i] = expensive_[i] || (expensive_[a] && !steps_[a].row);
      }
      depths_[i] += is_reduced(step);
    }
  }

  Schedule run() {
    int passes = 0;
    bool writes = false;
    for (size_t i = 0; i < steps_.size(); ++i) {
      passes = is_reduced(steps_[i]) ? std::max(passes, depths_[i]) : passes;
    }
    for (int result : results_) {
      if (!at(result).row) {
        writes = true;
        passes = std::max(passes, depths_[static_cast<size_t>(result)] + 1);
      }
    }
    for (int p = 0; p < passes; ++p) {
      folds(p);
      pass(p, writes && p + 1 == passes);
    }
    made_.after = rows_until(passes);
    return std::move(made_);
  }

 private:
  static bool is_reduced(const Step& step) {
    return step.kind == Kind::reduce || step.kind == Kind::fold;
  }
  const Step& at(int step) const {
    return steps_[static_cast<size_t>(step)];
  }

  /// Values of the row that can be had when `depth` passes are done, and were not before.
  std::vector<int> rows_until(int depth) {
    std::vector<int> out;
    for (size_t i = 0; i < steps_.size(); ++i) {
      auto kind = steps_[i].kind;
      bool computed = kind == Kind::input || kind == Kind::call || kind == Kind::cast;
      if (steps_[i].row && computed && depths_[i] <= depth && first_[i] == never) {
        first_[i] = depth;
        out.push_back(static_cast<int>(i));
      }
    }
    return out;
  }

  /// Folds take a pass of their own, for which nothing is kept: on a GPU all threads go over all
  /// elements.
  void folds(int number) {
    Pass pass;
    std::vector<bool> seen(steps_.size(), false);
    auto want = [&](auto& self, int step) -> void {
      auto i = static_cast<size_t>(step);
      if (steps_[i].row || seen[i]) {
        return;
      }
      seen[i] = true;
      for (int arg : steps_[i].args) {
        self(self, arg);
      }
      pass.each.push_back(step);
    };
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].kind == Kind::fold && depths_[i] == number + 1) {
        pass.reduces.push_back(static_cast<int>(i));
        for (int arg : steps_[i].args) {
          want(want, arg);
        }
      }
    }
    if (!pass.reduces.empty()) {
      pass.in_order = true;
      pass.before = rows_until(number);
      std::sort(pass.each.begin(), pass.each.end());
      made_.passes.push_back(std::move(pass));
    }
  }

  void pass(int number, bool writes) {
    Pass pass;
    pass.before = rows_until(number);
    pass.writes = writes;
    std::vector<bool> seen(steps_.size(), false);
    auto want = [&](auto& self, int step) -> void {
      auto i = static_cast<size_t>(step);
      if (steps_[i].row || seen[i]) {
        return;
      }
      seen[i] = true;
      bool known = steps_[i].kind == Kind::input ? keep_ == Keep::expensive_and_inputs
                                                 : keep_ != Keep::nothing && expensive_[i];
      if (known && first_[i] < number) {
        pass.restored.push_back(step);
        return;
      }
      for (int arg : steps_[i].args) {
        self(self, arg);
      }
      first_[i] = std::min(first_[i], number);
      pass.each.push_back(step);
    };
    for (size_t i = 0; i < steps_.size(); ++i) {
      if (steps_[i].kind == Kind::reduce && depths_[i] == number + 1) {
        pass.reduces.push_back(static_cast<int>(i));
        want(want, steps_[i].args[0]);
      }
    }
    for (int result : results_) {
      if (writes) {
        want(want, result);
      }
    }
    std::sort(pass.each.begin(), pass.each.end());
    for (int step : pass.restored) {
      if (std::find(made_.kept.begin(), made_.kept.end(), step) == made_.kept.end()) {
        made_.kept.push_back(step);
        auto where = places_[static_cast<size_t>(first_[static_cast<size_t>(step)])];
        made_.passes[where].kept.push_back(step);
      }
    }
    places_.push_back(made_.passes.size());
    made_.passes.push_back(std::move(pass));
  }

  const std::vector<Step>& steps_;
  const std::vector<int>& results_;
  Keep keep_;
  std::vector<int> depths_; // passes that must be done before
  std::vector<bool> expensive_;
  std::vector<int> first_; // the pass that computes it first
  std::vector<size_t> places_; // of the passes that are not in order
  Schedule made_;
};

} // namespace

Schedule schedule(const Program& program, Keep keep) {
  return Scheduler(program, keep).run();
}

} // namespace zmlx::lang
