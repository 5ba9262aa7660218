// zmlx/runtime/jit.h: C++ compiled at run time by the system's compiler.
#pragma once

#include <memory>
#include <string>

namespace zmlx::jit {

/// A loaded library; it stays loaded as long as it is held.
class Library {
 public:
  explicit Library(const std::string& path);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  /// The address of an extern "C" function; throws std::runtime_error when there is none.
  void* symbol(const char* name) const;

 private:
  void* handle_;
};

/// Whether there is a compiler: ZMLX_CXX, else c++, g++ or clang++ on PATH.
bool available();
/// How often the compiler has run in this process.
int compile_count();
/// The library made from a source. Kept in memory, and on disk by runtime/cache.h. Throws
/// std::runtime_error with the compiler's words, or when there is no compiler.
std::shared_ptr<const Library> compile(const std::string& source);

} // namespace zmlx::jit
