// zmlx/runtime/rowwise_task.cpp: runs of rows that all inputs go through evenly.
#include "zmlx/runtime/rowwise_task.h"

#include <algorithm>

#include "zmlx/runtime/team.h"

namespace zmlx {
namespace {

constexpr int64_t alone = 16 * 1024; // elements that one thread is done with before others wake up
constexpr int64_t block = 4096; // elements that are gathered at a time, or one row

class Runner {
 public:
  explicit Runner(const RowTask& task)
      : task_(task),
        from_(task.in.size()),
        steps_(task.in.size()),
        to_(task.out.size()),
        kept_(task.kept / sizeof(uint64_t) + 8),
        gathered_(task.in.size()) {}

  void run(Range part) {
    int64_t inner = task_.axes.extents.empty() ? 1 : task_.axes.extents.back();
    bool gathers = std::any_of(
        task_.in.begin(), task_.in.end(), [](auto& in) { return in.gathered.has_value(); });
    int64_t most =
        gathers ? std::max<int64_t>(1, block / std::max<int64_t>(1, task_.n)) : task_.rows;
    auto address = (reinterpret_cast<uintptr_t>(kept_.data()) + 63) & ~uintptr_t{63};
    for (int64_t row = part.begin; row < part.end;) {
      int64_t count = std::min({part.end - row, inner - row % inner, most});
      for (size_t i = 0; i < task_.in.size(); ++i) {
        place(i, row, count);
      }
      for (size_t i = 0; i < to_.size(); ++i) {
        to_[i] = task_.out[i] + row * task_.out_steps[i];
      }
      task_.run(
          from_.data(),
          steps_.data(),
          to_.data(),
          task_.out_steps.data(),
          count,
          task_.n,
          reinterpret_cast<char*>(address));
      row += count;
    }
  }

 private:
  void place(size_t i, int64_t row, int64_t count) {
    auto& in = task_.in[i];
    if (in.gathered) {
      gathered_[i].resize(static_cast<size_t>(count * task_.n));
      in.gathered->gather(row * task_.n, count * task_.n, gathered_[i].data());
      from_[i] = gathered_[i].data();
      steps_[i] = task_.n * in.bytes;
      return;
    }
    auto& strides = task_.axes.strides[i];
    int64_t offset = 0;
    for (size_t a = task_.axes.extents.size(); a-- > 0;) {
      offset += row % task_.axes.extents[a] * strides[a];
      row /= task_.axes.extents[a];
    }
    from_[i] = in.data + offset * in.bytes;
    steps_[i] = strides.empty() ? 0 : strides.back() * in.bytes;
  }

  const RowTask& task_;
  std::vector<const void*> from_;
  std::vector<int64_t> steps_;
  std::vector<void*> to_;
  std::vector<uint64_t> kept_;
  std::vector<std::vector<uint64_t>> gathered_;
};

} // namespace

void RowTask::operator()() const {
  auto part = [&](Member& member) { Runner(*this).run(member.split(rows)); };
  // Waking the team costs more than a short kernel.
  rows* n < alone ? Team::instance().run_alone(part) : Team::instance().run(part);
}

} // namespace zmlx
