// zmlx/runtime/cache.cpp: one file an entry, named after its key's hash and holding the key itself.
#include "zmlx/runtime/cache.h"

#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

namespace zmlx {
namespace {

namespace fs = std::filesystem;

/// FNV-1a.
uint64_t hash(std::string_view text) {
  uint64_t value = 0xcbf29ce484222325u;
  for (char c : text) {
    value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return value;
}

} // namespace

std::string cache_folder() {
  if (const char* root = std::getenv("XDG_CACHE_HOME"); root && *root) {
    return std::string(root) + "/zmlx";
  }
  const char* home = std::getenv("HOME");
  return home && *home ? std::string(home) + "/.cache/zmlx" : "";
}

std::string
cached(std::string_view extension, std::string_view key, const std::function<std::string()>& make) {
  auto folder = cache_folder();
  if (folder.empty()) {
    return make();
  }
  std::ostringstream name;
  name << folder << "/code/" << std::hex << hash(key) << '.' << extension;
  fs::path path = name.str();
  // Equal hashes of other keys must not pass for this one, nor half a file for a whole one.
  auto head = std::to_string(key.size()) + '\n' + std::string(key) + '\n';
  constexpr std::string_view tail = "\nend\n";
  if (std::ifstream file(path, std::ios::binary); file) {
    std::string text{std::istreambuf_iterator<char>(file), {}};
    if (text.starts_with(head) && text.ends_with(tail)) {
      return text.substr(head.size(), text.size() - head.size() - tail.size());
    }
  }
  auto bytes = make();
  static std::atomic<int> count{0};
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  fs::path scratch = path.string() + '.' + std::to_string(getpid()) + '.' + std::to_string(count++);
  std::ofstream file(scratch, std::ios::binary);
  file << head << bytes << tail;
  file.close();
  file ? fs::rename(scratch, path, ignored) : static_cast<void>(fs::remove(scratch, ignored));
  return bytes;
}

} // namespace zmlx
