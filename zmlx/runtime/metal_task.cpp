// zmlx/runtime/metal_task.cpp: stacks for coroutines, and threadgroups in parallel.
#include "zmlx/runtime/metal_task.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "zmlx/runtime/team.h"

namespace zmlx {
namespace {

constexpr size_t stack_bytes = 128 << 10; // of a coroutine
constexpr size_t page = 4096;
// Waking the team costs more than so many threads of a short kernel.
constexpr int64_t threads_alone = 4096;

/// Memory for the stacks of a group's coroutines, kept by each host thread.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks() {
    release();
  }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  char* of(size_t count) {
    if (count > count_) {
      release();
      void* memory = mmap(
          nullptr,
          count * stack_bytes,
          PROT_READ | PROT_WRITE,
          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
          -1,
          0);
      if (memory == MAP_FAILED) {
        throw std::bad_alloc();
      }
      memory_ = static_cast<char*>(memory);
      count_ = count;
      // A stack that is too small shall stop the process, not write into the next. The number of
      // such pages is limited: past the limit there are none.
      for (size_t i = 0; i < count && mprotect(memory_ + i * stack_bytes, page, PROT_NONE) == 0;) {
        ++i;
      }
    }
    return memory_;
  }

 private:
  void release() {
    if (memory_) {
      munmap(memory_, count_ * stack_bytes);
    }
    memory_ = nullptr;
    count_ = 0;
  }

  char* memory_ = nullptr;
  size_t count_ = 0;
};

std::array<uint32_t, 3> whole(const std::array<int, 3>& v) {
  return {static_cast<uint32_t>(v[0]), static_cast<uint32_t>(v[1]), static_cast<uint32_t>(v[2])};
}

} // namespace

int64_t groups_of(const MetalCall& call) {
  int64_t n = 1;
  for (size_t a = 0; a < 3; ++a) {
    int64_t grid = call.grid[a];
    n *= grid == 0 ? 0 : (grid + call.threadgroup[a] - 1) / call.threadgroup[a];
  }
  return n;
}

void MetalTask::operator()() const {
  for (auto& [output, from] : copies) {
    std::memcpy(out[output], from, bytes[output]);
  }
  int64_t groups = groups_of(call);
  if (groups == 0) {
    return;
  }
  std::vector<const int*> shape;
  std::vector<const int64_t*> stride;
  std::vector<int> ranks;
  for (size_t i = 0; i < in.size(); ++i) {
    shape.push_back(shapes[i].data());
    stride.push_back(strides[i].data());
    ranks.push_back(static_cast<int>(shapes[i].size()));
  }
  auto grid = whole(call.grid);
  auto group = whole(call.threadgroup);
  msl::Launch launch{
      in.data(),
      out.data(),
      shape.data(),
      stride.data(),
      ranks.data(),
      {grid[0], grid[1], grid[2]},
      {group[0], group[1], group[2]},
      nullptr,
      stack_bytes};
  auto part = [&](Range range) {
    static thread_local Stacks stacks;
    auto mine = launch;
    if (program->texts.together) {
      mine.stacks = stacks.of(size_t{group[0]} * group[1] * group[2]);
    }
    program->run(&mine, range.begin, range.end);
  };
  int64_t threads = int64_t{call.grid[0]} * call.grid[1] * call.grid[2];
  if (groups == 1 || threads < threads_alone || program->texts.in_order) {
    part({0, groups});
    return;
  }
  Team& team = Team::instance();
  int64_t grain = std::max<int64_t>(1, groups / (team.size() * 8));
  team.run([&](Member& member) { member.dynamic(groups, grain, part); });
}

} // namespace zmlx
