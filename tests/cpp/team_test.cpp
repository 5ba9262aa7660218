// tests/cpp/team_test.cpp: the thread team: work is split, barriers hold, failures come back, forks
// survive.
#include "zmlx/runtime/team.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "zmlx/runtime/cores.h"

namespace zmlx {
namespace {

TEST(Team, EveryMemberRunsOnceWithItsOwnRank) {
  for (int size : {1, 2, 3, 8}) {
    Team team(size);
    EXPECT_EQ(team.size(), size);
    std::vector<int> runs(static_cast<size_t>(size), 0);
    for (int i = 0; i < 100; ++i) {
      team.run([&](Member& m) {
        EXPECT_EQ(m.size(), size);
        ++runs[static_cast<size_t>(m.rank())];
      });
    }
    EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(size), 100));
  }
}

TEST(Team, ASplitCoversTheRangeOnceAtMultiplesOfTheGrain) {
  Team team(1);
  for (int size : {1, 2, 3, 7}) {
    for (int64_t n : {0, 1, 31, 32, 33, 97}) {
      for (int64_t grain : {1, 4, 64}) {
        int64_t at = 0;
        for (int rank = 0; rank < size; ++rank) {
          Range part = Member(team, rank, size).split(n, grain);
          EXPECT_EQ(part.begin, at);
          EXPECT_TRUE(part.begin % grain == 0 || part.begin == n);
          at = part.end;
        }
        EXPECT_EQ(at, n);
      }
    }
  }
}

TEST(Team, NoMemberPassesABarrierBeforeTheLastHasCome) {
  for (int size : {2, 3, 8}) { // 8 is more than most test machines have
    Team team(size);
    const int rounds = size == 2 ? 20000 : 500;
    std::vector<int> at(static_cast<size_t>(size), 0);
    team.run([&](Member& m) {
      for (int i = 1; i <= rounds; ++i) {
        at[static_cast<size_t>(m.rank())] = i;
        m.barrier();
        for (int other : at) {
          if (other != i) {
            throw std::logic_error("a member is in another round");
          }
        }
        m.barrier();
      }
    });
  }
}

TEST(Team, DynamicChunksAreTakenOnceAndTheCounterRewinds) {
  for (int size : {1, 2, 3}) {
    Team team(size);
    for (int64_t n : {0, 1, 31, 100}) {
      std::vector<std::atomic<int>> taken(static_cast<size_t>(n));
      team.run([&](Member& m) {
        for (int round = 0; round < 3; ++round) {
          m.dynamic(n, 7, [&](Range part) {
            EXPECT_LE(part.end, n);
            for (int64_t i = part.begin; i < part.end; ++i) {
              ++taken[static_cast<size_t>(i)];
            }
          });
        }
      });
      for (auto& count : taken) {
        EXPECT_EQ(count, 3);
      }
    }
  }
}

TEST(Team, AFailingMemberReleasesTheOthersAndItsExceptionComesBack) {
  for (int size : {1, 2, 3, 8}) {
    Team team(size);
    for (int culprit = 0; culprit < size; ++culprit) {
      for (int round = 0; round < 20; ++round) {
        try {
          team.run([&](Member& m) {
            m.barrier();
            if (m.rank() == culprit) {
              throw std::runtime_error("broken");
            }
            m.barrier();
            ADD_FAILURE() << "a member passed a barrier that another never reached";
          });
          ADD_FAILURE() << "no exception";
        } catch (const std::runtime_error& e) {
          EXPECT_STREQ(e.what(), "broken");
        }
      }
    }
    std::atomic<int> ran{0};
    team.run([&](Member& m) {
      m.barrier();
      ++ran;
    });
    EXPECT_EQ(ran, size);
  }
}

TEST(Team, CallersFromSeveralThreadsTakeTurns) {
  Team team(2);
  int64_t counter = 0; // unprotected: turns are what keeps it right
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        team.run([&](Member& m) {
          if (m.rank() == 0) {
            ++counter;
          }
          m.barrier();
          if (m.rank() == m.size() - 1) {
            ++counter;
          }
        });
      }
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }
  EXPECT_EQ(counter, 4 * 200 * 2);
}

#if !defined(__SANITIZE_THREAD__)
int run_in_child() {
  pid_t child = fork();
  if (child == 0) {
    alarm(20);
    std::atomic<int> sum{0};
    Team::instance().run([&](Member& m) {
      m.barrier();
      sum += m.rank() + 1;
    });
    int size = Team::instance().size();
    _exit(sum == size * (size + 1) / 2 ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return status;
}

TEST(Team, AForkedChildGetsATeamOfItsOwn) {
  Team::instance().run([](Member& m) { m.barrier(); });
  EXPECT_EQ(run_in_child(), 0);
  EXPECT_EQ(run_in_child(), 0);
  Team::instance().run([](Member& m) { m.barrier(); });
}
#endif

#if !defined(__SANITIZE_THREAD__)
TEST(Team, TakesNoMoreThreadsThanTheProcessMayUse) {
  const pid_t child = fork();
  if (child == 0) {
    cpu_set_t all;
    sched_getaffinity(0, sizeof(all), &all);
    for (int cpu = 0, kept = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &all) && kept++) {
        CPU_CLR(cpu, &all);
      }
    }
    sched_setaffinity(0, sizeof(all), &all);
    unsetenv("ZMLX_NUM_THREADS");
    _exit(Team::instance().size());
  }
  int status = -1;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 1);
}
#endif

TEST(Team, ReadsTheTightestCpuLimitOfItsCgroups) {
  const std::filesystem::path root = testing::TempDir() + "zmlx_cgroups";
  std::filesystem::remove_all(root);
  auto put = [&](const std::string& path, const std::string& text) {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text << '\n';
  };
  auto cores = [&](const std::string& groups) {
    put("list", groups);
    return cgroup_cores(root / "list", root);
  };
  put("cpu.max", "max 100000");
  put("box/cpu.max", "350000 100000");
  put("box/job/cpu.max", "max 100000");
  put("box/job/small/cpu.max", "20000 100000");
  EXPECT_EQ(cores("0::/"), std::nullopt);
  EXPECT_EQ(cores("0::/box"), 4); // 3.5, rounded up
  EXPECT_EQ(cores("0::/box/job"), 4); // the one above it
  EXPECT_EQ(cores("0::/box/job/small"), 1);
  EXPECT_EQ(cores("0::/not/here"), std::nullopt);
  EXPECT_EQ(cores("nonsense"), std::nullopt);
  put("cpu/old/cpu.cfs_quota_us", "200000");
  put("cpu/old/cpu.cfs_period_us", "100000");
  EXPECT_EQ(cores("4:memory:/box\n3:cpu,cpuacct:/old"), 2);
  put("cpu/old/cpu.cfs_quota_us", "-1");
  EXPECT_EQ(cores("3:cpu,cpuacct:/old"), std::nullopt);
  std::filesystem::remove_all(root);
}

TEST(Team, AnIdleTeamSleeps) {
  Team team(3);
  team.run([](Member& m) { m.barrier(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  auto used = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
        static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  };
  double before = used();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(used() - before, 0.05);
}

TEST(Team, ABadSizeIsNamed) {
  EXPECT_THROW(Team(0), std::invalid_argument);
  // instance() reads the variable once, so each value needs a process of its own.
  for (const char* bad : {"0", "two", "-1", "3x", "100000"}) {
    EXPECT_EXIT(
        {
          setenv("ZMLX_NUM_THREADS", bad, 1);
          try {
            Team::instance();
          } catch (const std::invalid_argument& e) {
            fputs(e.what(), stderr);
            _exit(7);
          }
          _exit(0);
        },
        testing::ExitedWithCode(7),
        "ZMLX_NUM_THREADS must be a number from 1 to 1024 but is '")
        << bad;
  }
  EXPECT_EXIT(
      {
        setenv("ZMLX_NUM_THREADS", "5", 1);
        _exit(Team::instance().size());
      },
      testing::ExitedWithCode(5),
      "");
}

} // namespace
} // namespace zmlx
