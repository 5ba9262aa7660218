// zmlx/runtime/error.h: error messages in MLX's form: "[op] what was expected and what came."
#pragma once

#include <sstream>
#include <stdexcept>

namespace zmlx {

/// Throws std::invalid_argument("[where] part part ...").
template <typename... Parts>
[[noreturn]] void fail(const char* where, const Parts&... parts) {
  std::ostringstream text;
  text << '[' << where << "] ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

} // namespace zmlx
