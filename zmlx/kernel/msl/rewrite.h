// zmlx/kernel/msl/rewrite.h: MSL text as the C++ that our headers give its meaning.
#pragma once

#include <set>
#include <string>
#include <string_view>

namespace zmlx::msl {

/// What a text needs around it.
struct Needs {
  bool together = false; // barriers, or functions of simd-groups
  std::set<std::string> swizzles; // "xy", "wzyx"
  std::set<std::string, std::less<>> members; // what looks like a swizzle and is the kernel's own
};

/// Line for line, a header before what uses it. A text in a function may be a body; `small` says
/// that half or bfloat may come up in it. Throws Mistake for what is not supported.
std::string rewritten(std::string_view text, bool in_function, bool small, Needs& needs);

/// Why a word is not supported; nullptr for one that is.
const char* why_not(std::string_view word);

/// Whether a text names half or bfloat itself.
bool names_small_floats(std::string_view text);

} // namespace zmlx::msl
