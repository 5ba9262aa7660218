// tests/cpp/cuda_host.h: CUDA's words and base.cuh's primitives as C++: the threads of a block are
// coroutines that run in turn, and meet where a warp or a block does. Stands before a kernel's
// text, behind kernel/msl/library/host_switch.h. What a GPU leaves to chance is made to hurt:
// copies that are not waited for have not happened, shared memory begins as NaN, and lanes that
// miss a meeting end the program.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#pragma GCC optimize("O1")

#define ZMLX_HOST
#define ZMLX_DEVICE inline
#define __device__
#define __forceinline__ inline
#define __global__ static
#define __launch_bounds__(...)
#define __shared__ static

struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

namespace simt {

struct Dim {
  uint32_t x, y, z;
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Thread {
  void* context = nullptr;
  Dim index{};
  int number = 0;
  bool ended = false;
  std::vector<std::vector<Copy>> groups{}; // of copies under way, oldest first
  std::vector<Copy> open{};
};

/// Threads that wait for each other. Two boards, as one may be at the next meeting before another
/// has read what this one left.
struct Meeting {
  int members = 0;
  int here = 0;
  int what = 0;
  unsigned count = 0;

  bool complete() {
    const bool all = here && here == members;
    if (all) {
      here = 0;
      ++count;
    }
    return all;
  }
};

struct Warp {
  Meeting meeting{};
  alignas(16) unsigned char board[2][32][32];
};

struct Block {
  std::vector<Thread> threads{};
  std::vector<Warp> warps{};
  Meeting meeting{};
  size_t current = 0;
  int idle = 0; // turns that went by without progress
  void* scheduler = nullptr;
  std::vector<unsigned char> shared{};
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
};

inline Block block;

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "thread %d of the block: %s\n", block.threads[block.current].number, what);
  std::abort();
}

} // namespace simt

static simt::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

inline Thread& self() {
  return block.threads[block.current];
}

inline void go_to(size_t next) {
  Thread& from = self();
  block.current = next;
  threadIdx = block.threads[next].index;
  zmlx_switch(&from.context, block.threads[next].context);
}

/// The next thread's turn.
inline void yield() {
  if (++block.idle > 4 * static_cast<int>(block.threads.size())) {
    die("waits in vain: others have ended or are elsewhere");
  }
  size_t next = block.current;
  do {
    next = next + 1 == block.threads.size() ? 0 : next + 1;
  } while (block.threads[next].ended);
  if (next != block.current) {
    go_to(next);
  }
}

/// Comes back when all members have called it for the same `what`.
inline void meet(Meeting& meeting, int what) {
  if (meeting.here++ == 0) {
    meeting.what = what;
  } else if (meeting.what != what) {
    die("threads meet in different functions");
  }
  const unsigned count = meeting.count;
  if (meeting.complete()) {
    block.idle = 0;
  }
  while (meeting.count == count) {
    yield();
  }
}

inline void entry() {
  block.idle = 0;
  block.body(block.argument);
  Thread& thread = self();
  thread.ended = true;
  block.idle = 0;
  --block.meeting.members;
  block.meeting.complete();
  for (size_t i = 0; i < block.threads.size(); ++i) {
    if (!block.threads[i].ended) {
      go_to(i);
    }
  }
  zmlx_switch(&thread.context, block.scheduler);
}

constexpr size_t stack_bytes = 64 << 10;

inline void run_block() {
  static std::vector<unsigned char> stacks;
  const size_t count = size_t{blockDim.x} * blockDim.y * blockDim.z;
  block.threads.assign(count, {});
  block.warps.assign((count + 31) / 32, {});
  block.meeting = {};
  block.meeting.members = static_cast<int>(count);
  block.idle = 0;
  stacks.resize(std::max(stacks.size(), count * stack_bytes));
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = block.threads[i];
    thread.number = static_cast<int>(i);
    const auto n = static_cast<uint32_t>(i);
    thread.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    ++block.warps[i / 32].meeting.members;
    auto top = reinterpret_cast<uintptr_t>(stacks.data() + (i + 1) * stack_bytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top) - zmlx_saved_words - 1;
    std::memset(words, 0, (zmlx_saved_words + 1) * sizeof(void*));
    words[zmlx_return_word] = reinterpret_cast<void*>(&entry);
    thread.context = words;
  }
  block.current = 0;
  threadIdx = block.threads[0].index;
  zmlx_switch(&block.scheduler, block.threads[0].context);
}

inline Warp& warp() {
  return block.warps[block.current / 32];
}

/// Shows a value to the other lanes; the reference is to the board that it stands on.
template <typename T>
inline auto& show(const T& value, int what) {
  static_assert(sizeof(T) <= 32);
  Warp& mine = warp();
  auto& board = mine.board[mine.meeting.count % 2];
  std::memcpy(board[block.current % 32], &value, sizeof(T));
  meet(mine.meeting, what);
  return board;
}

template <typename T, typename Board>
inline T read(const Board& board, int lane) {
  if (lane < 0 || lane > 31) {
    die("reads from a lane that there is not");
  }
  T value;
  std::memcpy(&value, board[lane], sizeof(T));
  return value;
}

inline void perform(const Copy& copy) {
  copy.valid ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
}

/// Runs `body` in every thread of every block.
template <typename F>
void launch(const uint32_t* grid, const uint32_t* threads, size_t shared, F body) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  block.body = [](void* argument) { (*static_cast<F*>(argument))(); };
  block.argument = &body;
  for (uint32_t z = 0; z < grid[2]; ++z) {
    for (uint32_t y = 0; y < grid[1]; ++y) {
      for (uint32_t x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        block.shared.assign(shared + 32, 0xFF);
        run_block();
        for (size_t i = 0; i < 16; ++i) {
          if (block.shared[block.shared.size() - 1 - i] != 0xFF) {
            die("shared memory was written beyond its end");
          }
        }
      }
    }
  }
}

} // namespace simt

// One argument of a launch, as the test fills it in.
struct SimtArgument {
  void* address;
  int64_t extent;
  int32_t integer;
  float real;
};

ZMLX_DEVICE float __uint_as_float(uint32_t x) {
  return __builtin_bit_cast(float, x);
}
ZMLX_DEVICE uint32_t __float_as_uint(float x) {
  return __builtin_bit_cast(uint32_t, x);
}

ZMLX_DEVICE float __int_as_float(int32_t x) {
  return __builtin_bit_cast(float, x);
}
ZMLX_DEVICE float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}

ZMLX_DEVICE void wait_for_predecessor() {}
ZMLX_DEVICE void start_successor() {}

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

ZMLX_DEVICE float to_float(float x) {
  return x;
}
ZMLX_DEVICE float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
ZMLX_DEVICE float to_float(f16 x) {
  return static_cast<float>(__builtin_bit_cast(_Float16, x.bits));
}

template <typename T>
ZMLX_DEVICE T from_float(float x);
template <>
ZMLX_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
ZMLX_DEVICE bf16 from_float<bf16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) {
    return {0x7FFF};
  }
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
template <>
ZMLX_DEVICE f16 from_float<f16>(float x) {
  return {__builtin_bit_cast(uint16_t, static_cast<_Float16>(x))};
}

template <typename T>
ZMLX_DEVICE float low_half(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair)});
}
template <typename T>
ZMLX_DEVICE float high_half(uint32_t pair) {
  return to_float(T{static_cast<uint16_t>(pair >> 16)});
}

template <typename T>
ZMLX_DEVICE uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}
/// Products of short floats are exact in float, and sums that the kernels form too.
template <typename T>
ZMLX_DEVICE uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  return pack2<T>(
      std::fma(low_half<T>(a), low_half<T>(b), low_half<T>(c)),
      std::fma(high_half<T>(a), high_half<T>(b), high_half<T>(c)));
}
template <uint32_t mask, uint32_t bits>
ZMLX_DEVICE uint32_t and_or(uint32_t a) {
  return (a & mask) | bits;
}
ZMLX_DEVICE uint32_t select_bytes(uint32_t a, uint32_t b, uint32_t numbers) {
  const uint64_t both = a | static_cast<uint64_t>(b) << 32;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(both >> (numbers >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  }
  return result;
}

template <typename T>
ZMLX_DEVICE T load_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(T)) {
    simt::die("loads from an address that is not aligned");
  }
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}
ZMLX_DEVICE uint4 load_once16(const void* p) {
  return load_aligned<uint4>(p);
}
ZMLX_DEVICE uint2 load_once8(const void* p) {
  return load_aligned<uint2>(p);
}
ZMLX_DEVICE uint32_t load_once4(const void* p) {
  return load_aligned<uint32_t>(p);
}

ZMLX_DEVICE uint8_t* dynamic_shared() {
  auto address = reinterpret_cast<uintptr_t>(simt::block.shared.data());
  return reinterpret_cast<uint8_t*>((address + 15) & ~uintptr_t{15});
}

ZMLX_DEVICE void sync_block() {
  simt::meet(simt::block.meeting, 1);
}
ZMLX_DEVICE void sync_warp() {
  simt::meet(simt::warp().meeting, 2);
}
ZMLX_DEVICE int lane_index() {
  return static_cast<int>(threadIdx.x & 31);
}
ZMLX_DEVICE int warp_index() {
  return static_cast<int>(threadIdx.x >> 5);
}

template <typename T>
ZMLX_DEVICE T shuffle(T value, int lane) {
  return simt::read<T>(simt::show(value, 3), lane & 31);
}
template <typename T>
ZMLX_DEVICE T shuffle_xor(T value, int mask) {
  return simt::read<T>(simt::show(value, 4), lane_index() ^ mask);
}
template <typename T>
ZMLX_DEVICE T shuffle_up(T value, int delta) {
  const int from = lane_index() - delta;
  return simt::read<T>(simt::show(value, 5), from < 0 ? lane_index() : from);
}
template <typename T>
ZMLX_DEVICE T shuffle_down(T value, int delta) {
  const int from = lane_index() + delta;
  return simt::read<T>(simt::show(value, 6), from > 31 ? lane_index() : from);
}
ZMLX_DEVICE uint32_t warp_max(uint32_t x) {
  for (int i = 16; i > 0; i /= 2) {
    x = std::max(x, shuffle_xor(x, i));
  }
  return x;
}
ZMLX_DEVICE uint32_t warp_min(uint32_t x) {
  for (int i = 16; i > 0; i /= 2) {
    x = std::min(x, shuffle_xor(x, i));
  }
  return x;
}
ZMLX_DEVICE uint32_t vote(bool flag) {
  auto& board = simt::show(flag, 7);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) {
    bits |= static_cast<uint32_t>(simt::read<bool>(board, i)) << i;
  }
  return bits;
}

ZMLX_DEVICE int bit_count(uint32_t x) {
  return __builtin_popcount(x);
}
ZMLX_DEVICE float bits_to_float(uint32_t x) {
  return __uint_as_float(x);
}
ZMLX_DEVICE uint32_t float_to_bits(float x) {
  return __float_as_uint(x);
}
ZMLX_DEVICE int atomic_add(int* p, int value) {
  const int old = *p;
  *p += value;
  return old;
}
ZMLX_DEVICE void fence() {}
template <typename T>
ZMLX_DEVICE T load_fresh(const T* p) {
  return *p;
}
ZMLX_DEVICE float atomic_add(float* p, float value) {
  const float old = *p;
  *p += value;
  return old;
}

ZMLX_DEVICE void copy_async16(void* shared, const void* global, bool valid = true) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 ||
      (valid && reinterpret_cast<uintptr_t>(global) % 16)) {
    simt::die("copies between addresses that are not aligned");
  }
  simt::self().open.push_back({shared, global, valid});
}
ZMLX_DEVICE void commit_copies() {
  simt::self().groups.push_back(std::move(simt::self().open));
  simt::self().open.clear();
}
template <int pending>
ZMLX_DEVICE void wait_for_copies() {
  auto& groups = simt::self().groups;
  while (groups.size() > pending) {
    for (auto& copy : groups.front()) {
      simt::perform(copy);
    }
    groups.erase(groups.begin());
  }
}

ZMLX_DEVICE void load_tiles(uint32_t (&d)[4], const void* shared) {
  auto& board = simt::show(shared, 8);
  const int lane = lane_index();
  for (int t = 0; t < 4; ++t) {
    auto* row = simt::read<const unsigned char*>(board, 8 * t + lane / 4);
    d[t] = load_aligned<uint32_t>(row + lane % 4 * 4);
  }
}
ZMLX_DEVICE void load_tiles_transposed(uint32_t (&d)[4], const void* shared) {
  auto& board = simt::show(shared, 9);
  const int lane = lane_index();
  for (int t = 0; t < 4; ++t) {
    uint32_t pair[2];
    for (int i = 0; i < 2; ++i) {
      auto* row = simt::read<const unsigned char*>(board, 8 * t + lane % 4 * 2 + i);
      pair[i] = load_aligned<uint16_t>(row + lane / 4 * 2);
    }
    d[t] = pair[0] | pair[1] << 16;
  }
}

template <typename T>
ZMLX_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  auto& board = simt::show(mine, 10);
  const int g = lane_index() / 4;
  const int t = lane_index() % 4;
  float sums[4] = {};
  for (int i = 0; i < 4; ++i) {
    const auto rows = simt::read<Operands>(board, 4 * g + i);
    for (int c = 0; c < 2; ++c) {
      const auto columns = simt::read<Operands>(board, 4 * (2 * t + c) + i);
      for (int half = 0; half < 2; ++half) {
        for (int h = 0; h < 2; ++h) {
          const uint32_t left = rows.a[half * 2 + h];
          const uint32_t right = columns.b[half];
          sums[2 * h + c] +=
              low_half<T>(left) * low_half<T>(right) + high_half<T>(left) * high_half<T>(right);
        }
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    d[i] += sums[i];
  }
}

ZMLX_DEVICE float fast_exp(float x) {
  return std::exp(x);
}
ZMLX_DEVICE float fast_exp2(float x) {
  return std::exp2(x);
}
ZMLX_DEVICE float inverse_sqrt(float x) {
  return 1 / std::sqrt(x);
}
ZMLX_DEVICE float divide(float a, float b) {
  return a / b;
}
ZMLX_DEVICE float infinity() {
  return INFINITY;
}
