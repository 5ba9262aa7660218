// zmlx/kernel/cuda/source.h: the texts of kernel sources that are compiled at run time.
#pragma once

namespace zmlx {

struct SourceText {
  const char* path; // "zmlx/kernel/cuda/base.cuh"
  const char* text;
};

/// All of them; the last has no path. Generated when the library is built.
extern const SourceText source_texts[];

} // namespace zmlx
