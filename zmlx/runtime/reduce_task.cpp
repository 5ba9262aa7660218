// zmlx/runtime/reduce_task.cpp: rows and columns, whole or in parts that are merged.
#include "zmlx/runtime/reduce_task.h"

#include <algorithm>

namespace zmlx {
namespace {

constexpr int64_t block = 1024; // elements that are gathered at a time
constexpr int64_t chunk = 64 * block; // elements that one thread adds up
constexpr int64_t row_group = 64; // rows whose results are written together

/// One thread's blocks of the inputs.
class Blocks {
 public:
  explicit Blocks(const std::vector<Strided>& in)
      : in_(in), memory_(in.size() * static_cast<size_t>(block)), from_(in.size()) {
    for (size_t k = 0; k < in.size(); ++k) {
      direct_ = direct_ && in[k].contiguous();
    }
  }
  /// Elements that may be had at once.
  int64_t most(int64_t wanted) const {
    return direct_ ? wanted : std::min(wanted, block);
  }
  const void* const* at(int64_t i, int64_t n) {
    for (size_t k = 0; k < in_.size(); ++k) {
      if (in_[k].contiguous()) {
        from_[k] = in_[k].at(i);
        continue;
      }
      auto* to = memory_.data() + k * static_cast<size_t>(block);
      // One value for all elements stays where the first block has put it.
      if (!in_[k].constant() || !filled_) {
        in_[k].gather(i, in_[k].constant() ? block : n, to);
      }
      from_[k] = to;
    }
    filled_ = true;
    return from_.data();
  }

 private:
  const std::vector<Strided>& in_;
  std::vector<uint64_t> memory_;
  std::vector<const void*> from_;
  bool direct_ = true;
  bool filled_ = false;
};

class Runner : public ReduceTask {
 public:
  explicit Runner(const ReduceTask& task) : ReduceTask(task) {}

  void run() const {
    Team& team = Team::instance();
    bool small = kept * reduced < 16 * block;
    auto go = [&](auto&& body) { small ? team.run_alone(body) : team.run(body); };
    int64_t parts = columns ? column_parts() : (reduced + chunk - 1) / chunk;
    if (parts <= 1) {
      go([&](Member& member) { columns ? whole_columns(member) : whole_rows(member); });
      return;
    }
    std::vector<uint64_t> memory(static_cast<size_t>(parts * kept));
    auto* acc = reinterpret_cast<char*>(memory.data());
    f.start(acc, parts * kept);
    go([&](Member& member) {
      columns ? split_columns(member, acc, parts) : split_rows(member, acc, parts);
      member.barrier();
      Range mine = member.split(kept, 16);
      for (int64_t p = 1; p < parts; ++p) {
        f.merge(
            acc + mine.begin * acc_bytes, acc + (p * kept + mine.begin) * acc_bytes, size(mine));
      }
      f.finish(acc + mine.begin * acc_bytes, out + mine.begin * out_bytes, size(mine), reduced);
    });
  }

 private:
  static int64_t size(Range range) {
    return range.end - range.begin;
  }

  void add_row(Blocks& blocks, Range range, void* acc) const {
    for (int64_t i = range.begin; i < range.end;) {
      int64_t n = std::min(blocks.most(chunk), range.end - i);
      f.rows(blocks.at(i, n), acc, n);
      i += n;
    }
  }
  void whole_rows(Member& member) const {
    Blocks blocks(in);
    uint64_t acc[row_group];
    Range mine = member.split(kept);
    for (int64_t row = mine.begin; row < mine.end; row += row_group) {
      int64_t n = std::min(row_group, mine.end - row);
      f.start(acc, n);
      for (int64_t r = 0; r < n; ++r) {
        int64_t begin = (row + r) * reduced;
        add_row(blocks, {begin, begin + reduced}, reinterpret_cast<char*>(acc) + r * acc_bytes);
      }
      f.finish(acc, out + row * out_bytes, n, reduced);
    }
  }
  void split_rows(Member& member, char* acc, int64_t parts) const {
    Blocks blocks(in);
    Range mine = member.split(kept * parts);
    for (int64_t unit = mine.begin; unit < mine.end; ++unit) {
      int64_t row = unit / parts;
      int64_t part = unit % parts;
      int64_t begin = row * reduced;
      Range range{begin + part * chunk, begin + std::min(reduced, (part + 1) * chunk)};
      add_row(blocks, range, acc + (part * kept + row) * acc_bytes);
    }
  }

  /// Parts of the reduced axes: where there are few columns, threads share them.
  int64_t column_parts() const {
    return kept >= 16 * block ? 1 : std::clamp<int64_t>(kept * reduced / chunk, 1, 16);
  }
  void add_columns(Blocks& blocks, Range columns_of, Range rows_of, void* acc) const {
    for (int64_t r = rows_of.begin; r < rows_of.end; ++r) {
      f.columns(blocks.at(r * kept + columns_of.begin, size(columns_of)), acc, size(columns_of));
    }
  }
  void whole_columns(Member& member) const {
    Blocks blocks(in);
    std::vector<uint64_t> acc(static_cast<size_t>(block));
    Range mine = member.split(kept, 16);
    for (int64_t j = mine.begin; j < mine.end; j += block) {
      Range range{j, std::min(mine.end, j + block)};
      f.start(acc.data(), size(range));
      add_columns(blocks, range, {0, reduced}, acc.data());
      f.finish(acc.data(), out + j * out_bytes, size(range), reduced);
    }
  }
  void split_columns(Member& member, char* acc, int64_t parts) const {
    Blocks blocks(in);
    Range mine = member.split(parts);
    for (int64_t part = mine.begin; part < mine.end; ++part) {
      Range rows_of{part * reduced / parts, (part + 1) * reduced / parts};
      for (int64_t j = 0; j < kept; j += block) {
        Range range{j, std::min(kept, j + block)};
        add_columns(blocks, range, rows_of, acc + (part * kept + j) * acc_bytes);
      }
    }
  }
};

} // namespace

void ReduceTask::operator()() const {
  Runner(*this).run();
}

} // namespace zmlx
