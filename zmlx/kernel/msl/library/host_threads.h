// zmlx/kernel/msl/library/host_threads.h: a kernel's threads on the CPU: coroutines of one host
// thread where they wait for each other, and a loop where they do not. Behind integers.h.

template <typename T>
struct ZmlxAtomic {
  static zmlx_inline T load(const volatile T* at) {
    T x;
    __atomic_load(const_cast<const T*>(at), &x, __ATOMIC_RELAXED);
    return x;
  }
  static zmlx_inline T exchange(volatile T* at, T x) {
    T before;
    __atomic_exchange(const_cast<T*>(at), &x, &before, __ATOMIC_RELAXED);
    return before;
  }
  static zmlx_inline bool compare_exchange(volatile T* at, T& expected, T x) {
    return __atomic_compare_exchange(
        const_cast<T*>(at), &expected, &x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  }
  static zmlx_inline T add(volatile T* at, T x) {
    if constexpr (is_integral_v<T> && !is_same_v<T, bool>) {
      return __atomic_fetch_add(at, x, __ATOMIC_RELAXED);
    } else {
      T before = load(at);
      while (!compare_exchange(at, before, T(before + x))) {
      }
      return before;
    }
  }
};
zmlx_inline void zmlx_fence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/// What a launch is given; runtime/metal_kernel.cpp has the same.
struct Launch {
  const void* const* in;
  void* const* out;
  const int* const* shapes;
  const int64_t* const* strides;
  const int* ranks;
  uint grid[3];
  uint group[3];
  char* stacks;
  size_t stack_bytes; // of one thread
};

/// Where a thread is.
struct Place {
  uint3 grid, nominal, group, groups, actual, inside;

  zmlx_inline uint index() const {
    return inside.x + actual.x * (inside.y + actual.y * inside.z);
  }
  zmlx_inline uint count() const {
    return actual.x * actual.y * actual.z;
  }
  zmlx_inline uint3 position() const {
    return group * nominal + inside;
  }
};

namespace zmlx_threads {

enum State { ready, at_simdgroup, at_barrier, done };
struct Thread {
  void* stack = nullptr; // where it goes on
  State state = ready;
  uint site = 0;
  uint argument = 0;
  void (*together)(Thread* threads, uint mask) = nullptr;
  alignas(16) char value[32];
};
struct Group {
  void* scheduler = nullptr;
  Thread* current = nullptr;
  const void* body = nullptr;
  void (*run)(const void* body, uint index) = nullptr;
  Thread threads[1024];
};
static thread_local Group group;

} // namespace zmlx_threads

namespace zmlx_threads {

/// The running thread waits; the others go on.
inline __attribute__((noinline)) void wait(State state) {
  Thread* self = group.current;
  self->state = state;
  zmlx_switch(&self->stack, group.scheduler);
}

inline void thread_main() {
  group.run(group.body, static_cast<uint>(group.current - group.threads));
  wait(done);
}

inline void start(const Launch& launch, uint index) {
  // Stacks begin at different places of a page, so that they do not fight for the same cache lines.
  char* top = launch.stacks + (index + 1) * launch.stack_bytes - 64 - index % 8 * 512;
  auto words = reinterpret_cast<void**>(top) - zmlx_saved_words - 1;
  for (int i = 0; i < zmlx_saved_words; ++i) {
    words[i] = nullptr;
  }
  words[zmlx_return_word] = reinterpret_cast<void*>(&thread_main);
  group.threads[index].stack = words;
  group.threads[index].state = ready;
}

inline void resume(Thread& thread) {
  group.current = &thread;
  zmlx_switch(&group.scheduler, thread.stack);
}

/// Lets the threads of a simd-group that can go on do so, each until it waits.
inline void run_simdgroup(Thread* threads, uint count) {
  for (uint i = 0; i < count; ++i) {
    if (threads[i].state == ready) {
      resume(threads[i]);
    }
  }
}

/// Gives a simd-group's threads that have met at a call its results; false when none wait. Where
/// they have parted, those at the earliest call go on first.
inline bool meet_simdgroup(Thread* threads, uint count) {
  const Thread* first = nullptr;
  for (uint i = 0; i < count; ++i) {
    auto& t = threads[i];
    if (t.state == at_simdgroup && (!first || t.site < first->site)) {
      first = &t;
    }
  }
  if (!first) {
    return false;
  }
  auto together = first->together;
  uint site = first->site;
  uint mask = 0;
  for (uint i = 0; i < count; ++i) {
    auto& t = threads[i];
    if (t.state == at_simdgroup && t.site == site && t.together == together) {
      mask |= 1u << i;
      t.state = ready;
    }
  }
  if (together) {
    together(threads, mask);
  }
  return true;
}

/// Simd-groups go from call to call side by side, as on a GPU: bodies that forget a barrier often
/// count on that.
inline void run_group(const Launch& launch, uint count) {
  for (uint i = 0; i < count; ++i) {
    start(launch, i);
  }
  for (bool again = true; again;) {
    for (uint i = 0; i < count; i += 32) {
      run_simdgroup(group.threads + i, count - i < 32 ? count - i : 32);
    }
    again = false;
    for (uint i = 0; i < count; i += 32) {
      again |= meet_simdgroup(group.threads + i, count - i < 32 ? count - i : 32);
    }
    if (again) {
      continue;
    }
    // All that are not done are at a barrier.
    for (uint i = 0; i < count; ++i) {
      if (group.threads[i].state == at_barrier) {
        group.threads[i].state = ready;
        again = true;
      }
    }
  }
}

/// Hands x to the simd-group's threads that take part, and returns what `together` left for this
/// one.
template <typename T>
zmlx_inline T meet(T x, uint argument, uint site, void (*together)(Thread*, uint)) {
  static_assert(
      sizeof(T) <= sizeof(Thread::value), "a value of a simd-group function has at most 32 bytes");
  Thread& self = *group.current;
  zmlx_copy(self.value, &x, sizeof(T));
  self.argument = argument;
  self.site = site;
  self.together = together;
  wait(at_simdgroup);
  zmlx_copy(&x, self.value, sizeof(T));
  return x;
}

template <typename T, typename Op, uint width>
void reduce(Thread* threads, uint mask) {
  for (uint base = 0; base < 32; base += width) {
    T v[width];
    bool has[width];
    for (uint i = 0; i < width; ++i) {
      has[i] = mask >> (base + i) & 1;
      if (has[i]) {
        zmlx_copy(&v[i], threads[base + i].value, sizeof(T));
      }
    }
    for (uint step = 1; step < width; step *= 2) {
      for (uint i = 0; i < width; i += 2 * step) {
        v[i] = has[i] && has[i + step] ? Op()(v[i], v[i + step]) : has[i] ? v[i] : v[i + step];
        has[i] = has[i] || has[i + step];
      }
    }
    for (uint i = 0; i < width; ++i) {
      if (mask >> (base + i) & 1) {
        zmlx_copy(threads[base + i].value, &v[0], sizeof(T));
      }
    }
  }
}

template <typename T, typename Op, bool inclusive>
void scan(Thread* threads, uint mask) {
  T sum;
  bool any = false;
  for (uint i = 0; i < 32; ++i) {
    if (mask >> i & 1) {
      T x;
      zmlx_copy(&x, threads[i].value, sizeof(T));
      T next = any ? Op()(sum, x) : x;
      if (inclusive || any) {
        zmlx_copy(threads[i].value, inclusive ? &next : &sum, sizeof(T));
      } else {
        threads[i].argument = 1; // the first has nothing before it
      }
      sum = next;
      any = true;
    }
  }
}

template <typename T, uint width>
void exchange(Thread* threads, uint mask) {
  T v[32];
  for (uint i = 0; i < 32; ++i) {
    if (mask >> i & 1) {
      zmlx_copy(&v[i], threads[i].value, sizeof(T));
    }
  }
  for (uint i = 0; i < 32; ++i) {
    if (mask >> i & 1) {
      uint from = threads[i].argument;
      uint at = i / width * width + from;
      if (from < width && (mask >> at & 1)) {
        zmlx_copy(threads[i].value, &v[at], sizeof(T));
      }
    }
  }
}

} // namespace zmlx_threads

zmlx_inline uint zmlx_lane() {
  return static_cast<uint>(zmlx_threads::group.current - zmlx_threads::group.threads) % 32;
}
template <typename Op, uint width, typename T>
zmlx_inline T zmlx_reduce(T x, uint site) {
  return zmlx_threads::meet(x, 0, site, zmlx_threads::reduce<T, Op, width>);
}
template <typename Op, bool inclusive, typename T>
zmlx_inline T zmlx_scan(T x, T neutral, uint site) {
  T y = zmlx_threads::meet(x, 0, site, zmlx_threads::scan<T, Op, inclusive>);
  return zmlx_threads::group.current->argument ? neutral : y;
}
template <uint width, typename T>
zmlx_inline T zmlx_exchange(T x, uint lane, uint site) {
  return zmlx_threads::meet(x, lane, site, zmlx_threads::exchange<T, width>);
}
template <typename F>
zmlx_inline void threadgroup_barrier(F) {
  zmlx_threads::wait(zmlx_threads::at_barrier);
}
template <typename F>
zmlx_inline void simdgroup_barrier(F, uint site = zmlx_line) {
  zmlx_threads::meet(0u, 0, site, nullptr);
}

/// Threadgroups [begin, end) in the order of their index.
template <bool together, typename Body>
zmlx_inline void
zmlx_run_groups(const Launch& launch, int64_t begin, int64_t end, const Body& body) {
  Place p;
  p.grid = uint3(launch.grid[0], launch.grid[1], launch.grid[2]);
  p.nominal = uint3(launch.group[0], launch.group[1], launch.group[2]);
  p.groups = (p.grid + p.nominal - 1u) / p.nominal;
  for (int64_t i = begin; i < end; ++i) {
    p.group = uint3(
        static_cast<uint>(i % p.groups.x),
        static_cast<uint>(i / p.groups.x % p.groups.y),
        static_cast<uint>(i / p.groups.x / p.groups.y));
    uint3 first = p.group * p.nominal;
    p.actual = min(p.nominal, p.grid - first);
    if constexpr (together) {
      auto one = [&](uint index) {
        Place mine = p;
        mine.inside = uint3(
            index % p.actual.x, index / p.actual.x % p.actual.y, index / p.actual.x / p.actual.y);
        body(mine, mine.position());
      };
      zmlx_threads::group.body = &one;
      zmlx_threads::group.run = [](const void* f, uint index) {
        (*static_cast<const decltype(one)*>(f))(index);
      };
      zmlx_threads::run_group(launch, p.count());
    } else {
      for (uint z = 0; z < p.actual.z; ++z) {
        for (uint y = 0; y < p.actual.y; ++y) {
          const uint from = first.x;
          const uint to = first.x + p.actual.x;
#pragma GCC ivdep
          for (uint x = from; x < to; ++x) {
            Place mine = p;
            mine.inside = uint3(x - from, y, z);
            body(mine, uint3(x, first.y + y, first.z + z));
          }
        }
      }
    }
  }
}
