// zmlx/kernel/lang/print.h: kernels as text in each language.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "zmlx/kernel/lang/lower.h"

namespace zmlx::lang {

enum class Language : uint8_t { cpp };

/// Of "cpp"; throws std::invalid_argument for others.
Language language_named(std::string_view name);

struct ElementwiseText {
  const Program& program;
  std::vector<Dtype> in; // as stored
  std::vector<Dtype> out;
};

/// C++: `extern "C" void zmlx_run(const void* const* in, void* const* out, int64_t n)` over
/// contiguous runs.
std::string elementwise_text(const ElementwiseText& kernel, Language language);

} // namespace zmlx::lang
