// zmlx/runtime/cuda/nvrtc.h: kernel sources compiled by NVIDIA's run-time compiler, found at run
// time.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace zmlx::cuda {

/// Machine code with the mangled name of each instantiation that was asked for.
struct Binary {
  std::string cubin;
  std::vector<std::string> names;
};

/// Compiles instantiations of the templates in a file of zmlx/kernel/cuda (none: "") with `more`
/// behind it, or takes them from the cache on disk. Throws std::runtime_error with the compiler's
/// log, or when there is no compiler.
Binary compile(
    std::string_view file,
    const std::vector<std::string>& instantiations,
    int architecture,
    std::string_view more = "");

/// "13.5", or empty where there is no NVRTC; `why` then says so.
std::string nvrtc_version(std::string* why = nullptr);

} // namespace zmlx::cuda
