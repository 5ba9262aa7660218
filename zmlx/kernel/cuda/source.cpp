// zmlx/kernel/cuda/source.cpp: finds a source's text and puts its includes in place.
#include "zmlx/kernel/cuda/source.h"

#include <algorithm>
#include <mutex>
#include <set>
#include <unordered_set>

#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/error.h"

namespace zmlx::cuda {
namespace {

/// nullptr for a file that is not built in.
const char* text_of(std::string_view path) {
  for (auto* source = source_texts; source->path; ++source) {
    if (source->path == path) {
      return source->text;
    }
  }
  return nullptr;
}

/// An include that is not built in stays for the compiler, which may never come to it.
void append(std::string& out, std::string_view path, std::set<std::string, std::less<>>& seen) {
  constexpr std::string_view include = "#include \"zmlx/";
  if (!seen.emplace(path).second) {
    return;
  }
  std::string_view text = text_of(path);
  while (!text.empty()) {
    auto line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with(include)) {
      auto name = line.substr(include.size() - 5);
      name = name.substr(0, name.find('"'));
      text_of(name) ? append(out, name, seen) : void(out.append(line).push_back('\n'));
    } else if (line != "#pragma once") {
      out.append(line).push_back('\n');
    }
  }
}

} // namespace

const std::string* shared_text(std::string text) {
  static std::mutex mutex;
  static auto* texts = new std::unordered_set<std::string>; // for as long as anyone may launch
  std::lock_guard lock(mutex);
  return &*texts->insert(std::move(text)).first;
}

std::string source_text(std::string_view file) {
  std::string out;
  std::set<std::string, std::less<>> seen;
  auto path = "zmlx/kernel/cuda/" + std::string(file);
  if (!text_of(path)) {
    fail("cuda", "there is no kernel source named ", path, ".");
  }
  append(out, path, seen);
  return out;
}

} // namespace zmlx::cuda
