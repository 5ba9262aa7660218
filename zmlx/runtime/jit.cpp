// zmlx/runtime/jit.cpp: the compiler's call, and what it made as a loaded library.
#include "zmlx/runtime/jit.h"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "zmlx/runtime/cache.h"

namespace zmlx::jit {
namespace {

namespace fs = std::filesystem;

// No contraction: results must not depend on the compiler. No traps or errno: they would keep loops
// from being vectorised. Integers wrap, as they do in MLX.
constexpr const char* flags =
    "-std=c++20 -O3 -march=native -fPIC -shared -fopenmp-simd -ffp-contract=off -fno-math-errno "
    "-fno-trapping-math -fwrapv -w";

std::atomic<int> compiles{0};

std::string output_of(const std::string& command) {
  std::string text;
  if (FILE* pipe = popen((command + " 2>&1").c_str(), "r")) {
    std::array<char, 4096> part;
    while (size_t n = fread(part.data(), 1, part.size(), pipe)) {
      text.append(part.data(), n);
    }
    if (pclose(pipe) != 0) {
      return "";
    }
  }
  return text;
}

std::string shell_word(const std::string& word) {
  std::string out = "'";
  for (char c : word) {
    out += c == '\'' ? "'\\''" : std::string(1, c);
  }
  return out + "'";
}

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  file.close();
  if (!file) {
    throw std::runtime_error("[jit] " + path.string() + " cannot be written.");
  }
}

/// The machine's instruction set extensions: a cache may be shared by machines that differ.
std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("flags") || line.starts_with("Features")) {
      return line;
    }
  }
  return "";
}

struct Compiler {
  std::string command; // "" when there is none
  std::string identity;
};

const Compiler& compiler() {
  static const Compiler found = [] {
    const char* chosen = std::getenv("ZMLX_CXX");
    std::vector<std::string> names = {"c++", "g++", "clang++"};
    if (chosen) {
      names = {chosen};
    }
    for (auto& name : names) {
      auto version = output_of(shell_word(name) + " --version");
      if (!version.empty()) {
        return Compiler{shell_word(name), name + '\n' + version + processor()};
      }
    }
    return Compiler{};
  }();
  return found;
}

/// A folder of this call's own, gone with it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    auto name = (fs::temp_directory_path() / "zmlx_XXXXXX").string();
    if (!mkdtemp(name.data())) {
      throw std::runtime_error("[jit] " + name + " cannot be made; set TMPDIR.");
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  fs::path operator/(const char* name) const {
    return path_ / name;
  }

 private:
  fs::path path_;
};

/// The bytes of a library.
std::string run_compiler(const std::string& source) {
  if (!available()) {
    throw std::runtime_error(
        "[jit] there is no C++ compiler: ZMLX_CXX, c++, g++ and clang++ do not run.");
  }
  TemporaryFolder folder;
  auto text = folder / "kernel.cpp";
  auto library = folder / "kernel.so";
  auto log = folder / "log";
  write(text, source);
  ++compiles;
  auto command = compiler().command + " " + flags + " " + shell_word(text.string()) + " -o " +
      shell_word(library.string()) + " >" + shell_word(log.string()) + " 2>&1";
  if (std::system(command.c_str()) != 0) {
    throw std::runtime_error("[jit] the compiler failed:\n" + read(log));
  }
  return read(library);
}

std::shared_ptr<const Library> build(const std::string& source) {
  auto key = std::string(flags) + '\n' + compiler().identity + source;
  auto bytes = cached("so", key, [&] { return run_compiler(source); });
  // A loaded library needs no name any more.
  TemporaryFolder folder;
  auto path = folder / "kernel.so";
  write(path, bytes);
  return std::make_shared<const Library>(path.string());
}

} // namespace

Library::Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (!handle_) {
    throw std::runtime_error(std::string("[jit] ") + dlerror());
  }
}

Library::~Library() {
  dlclose(handle_);
}

void* Library::symbol(const char* name) const {
  if (void* address = dlsym(handle_, name)) {
    return address;
  }
  throw std::runtime_error(std::string("[jit] ") + dlerror());
}

bool available() {
  return !compiler().command.empty();
}

int compile_count() {
  return compiles;
}

std::shared_ptr<const Library> compile(const std::string& source) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Library>> loaded;
  std::lock_guard lock(mutex);
  auto it = loaded.find(source);
  if (it == loaded.end()) {
    it = loaded.emplace(source, build(source)).first;
  }
  return it->second;
}

} // namespace zmlx::jit
