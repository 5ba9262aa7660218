// tests/cpp/cache_test.cpp: what is kept on disk comes back, for its own key alone.
#include "zmlx/runtime/cache.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace zmlx {
namespace {

TEST(Cache, an_entry_is_made_once_and_comes_back_for_its_key_alone) {
  auto folder = std::filesystem::temp_directory_path() / "zmlx_cache_test";
  std::filesystem::remove_all(folder);
  setenv("XDG_CACHE_HOME", folder.c_str(), 1);
  int made = 0;
  auto make = [&](std::string bytes) {
    return [&made, bytes] {
      ++made;
      return bytes;
    };
  };
  std::string bytes("a\0b\n", 4);
  EXPECT_EQ(cached("bin", "key", make(bytes)), bytes);
  EXPECT_EQ(cached("bin", "key", make("other")), bytes);
  EXPECT_EQ(made, 1);
  EXPECT_EQ(cached("bin", "another key", make("other")), "other");
  EXPECT_EQ(made, 2);
  std::filesystem::remove_all(folder);
}

TEST(Cache, a_folder_that_cannot_be_written_costs_the_work_again) {
  setenv("XDG_CACHE_HOME", "/dev/null", 1);
  EXPECT_EQ(cached("bin", "key", [] { return std::string("bytes"); }), "bytes");
  EXPECT_EQ(cached("bin", "key", [] { return std::string("more"); }), "more");
}

} // namespace
} // namespace zmlx
