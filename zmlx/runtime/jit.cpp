// zmlx/runtime/jit.cpp: the compiler's call, and files that appear whole or not at all.
#include "zmlx/runtime/jit.h"

#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>

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
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
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
    for (const std::string& name : chosen ? std::array<std::string, 3>{chosen, chosen, chosen}
                                          : std::array<std::string, 3>{"c++", "g++", "clang++"}) {
      auto version = output_of(shell_word(name) + " --version");
      if (!version.empty()) {
        return Compiler{shell_word(name), name + '\n' + version + processor()};
      }
    }
    return Compiler{};
  }();
  return found;
}

uint64_t hash(const std::string& text, uint64_t h) {
  for (char c : text) {
    h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  return h;
}

fs::path cache_folder() {
  if (const char* chosen = std::getenv("ZMLX_CACHE_DIR")) {
    return chosen;
  }
  if (const char* home = std::getenv("HOME")) {
    return fs::path(home) / ".cache" / "zmlx";
  }
  return fs::temp_directory_path() / "zmlx";
}

std::shared_ptr<const Library> build(const std::string& source) {
  auto whole = "// " + std::string(flags) + "\n/*\n" + compiler().identity + "*/\n" + source;
  char name[40];
  std::snprintf(
      name,
      sizeof(name),
      "%016llx%016llx",
      static_cast<unsigned long long>(hash(whole, 0xCBF29CE484222325u)),
      static_cast<unsigned long long>(hash(whole, 0x9E3779B97F4A7C15u)));
  auto folder = cache_folder() / "jit";
  fs::create_directories(folder);
  auto text = folder / (std::string(name) + ".cpp");
  auto library = folder / (std::string(name) + ".so");
  // The text beside it proves that it is ours, not another one of the same hash.
  if (fs::exists(library) && read(text) == whole) {
    return std::make_shared<const Library>(library.string());
  }
  auto own = folder / (std::string(name) + "." + std::to_string(getpid()));
  auto own_text = own.string() + ".cpp";
  auto own_library = own.string() + ".so";
  std::ofstream(own_text, std::ios::binary) << whole;
  ++compiles;
  auto log = own.string() + ".log";
  auto command = compiler().command + " " + flags + " " + shell_word(own_text) + " -o " +
      shell_word(own_library) + " 2>" + shell_word(log);
  int status = std::system(command.c_str());
  auto words = read(log);
  fs::remove(log);
  if (status != 0) {
    fs::remove(own_text);
    throw std::runtime_error("[jit] the compiler failed:\n" + words);
  }
  fs::rename(own_text, text);
  fs::rename(own_library, library);
  return std::make_shared<const Library>(library.string());
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
