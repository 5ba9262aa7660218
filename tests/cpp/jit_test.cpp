// tests/cpp/jit_test.cpp: code compiled at run time is kept on disk, by many processes at once.
#include "zmlx/runtime/jit.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "op_testing.h"

namespace zmlx {
namespace {

namespace fs = std::filesystem;

std::string source_of(int value) {
  return "extern \"C\" int answer() { return " + std::to_string(value) + "; }\n";
}

int answer(const std::string& source) {
  return reinterpret_cast<int (*)()>(jit::compile(source)->symbol("answer"))();
}

/// Runs f in a child process: what it compiled, or -1 when it failed.
template <typename F>
pid_t in_child(F f) {
  pid_t child = fork();
  if (child == 0) {
    int status = 100;
    try {
      status = f();
    } catch (...) {
    }
    _exit(status);
  }
  return child;
}

int status_of(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

class Jit : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder_);
    setenv("XDG_CACHE_HOME", folder_.c_str(), 1);
    if (!jit::available()) {
      GTEST_SKIP() << "there is no C++ compiler";
    }
  }
  void TearDown() override {
    fs::remove_all(folder_);
  }

  fs::path folder_ = fs::temp_directory_path() / ("zmlx_jit_test" + std::to_string(getpid()));
};

TEST_F(Jit, another_process_finds_what_one_has_compiled) {
  EXPECT_EQ(answer(source_of(1)), 1);
  pid_t child = in_child([] {
    // Not in this process's memory: the text differs from what the parent has loaded.
    return answer(source_of(2)) == 2 ? jit::compile_count() : 100;
  });
  int compiled = jit::compile_count();
  EXPECT_EQ(status_of(child), compiled + 1);
  EXPECT_EQ(answer(source_of(2)), 2);
  EXPECT_EQ(jit::compile_count(), compiled);
}

TEST_F(Jit, many_processes_compile_the_same_at_once) {
  std::vector<pid_t> children;
  children.reserve(4);
  for (int i = 0; i < 4; ++i) {
    children.push_back(in_child([] { return answer(source_of(3)) == 3 ? 0 : 1; }));
  }
  for (pid_t child : children) {
    EXPECT_EQ(status_of(child), 0);
  }
  int files = 0;
  for (auto& entry : fs::directory_iterator(folder_ / "zmlx" / "code")) {
    files += entry.is_regular_file();
  }
  EXPECT_EQ(files, 1); // nothing half written is left
  EXPECT_EQ(answer(source_of(3)), 3);
}

TEST_F(Jit, a_cache_that_cannot_be_written_costs_the_work_again) {
  setenv("XDG_CACHE_HOME", "/dev/null", 1);
  EXPECT_EQ(answer(source_of(4)), 4);
  EXPECT_EQ(status_of(in_child([] { return answer(source_of(4)) == 4 ? 0 : 1; })), 0);
}

TEST_F(Jit, an_entry_cut_short_is_made_again) {
  status_of(in_child([] { return answer(source_of(5)); }));
  for (auto& entry : fs::directory_iterator(folder_ / "zmlx" / "code")) {
    fs::resize_file(entry, fs::file_size(entry) - 1);
  }
  EXPECT_EQ(answer(source_of(5)), 5);
}

TEST_F(Jit, the_compilers_words_are_told) {
  auto words = testing::message_of([] { jit::compile("int answer() { return nothing; }"); });
  EXPECT_NE(words.find("[jit] the compiler failed:\n"), std::string::npos) << words;
  EXPECT_NE(words.find("nothing"), std::string::npos) << words;
}

TEST_F(Jit, a_missing_function_is_named) {
  auto library = jit::compile(source_of(6));
  auto words = testing::message_of([&] { library->symbol("no_such_function"); });
  EXPECT_NE(words.find("no_such_function"), std::string::npos) << words;
}

} // namespace
} // namespace zmlx
