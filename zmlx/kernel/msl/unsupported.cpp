// zmlx/kernel/msl/unsupported.cpp: words of Metal that have no meaning here, or none in Metal.
#include "zmlx/kernel/msl/rewrite.h"

namespace zmlx::msl {
namespace {

struct Unsupported {
  std::string_view word; // a prefix where it ends with *
  const char* what;
};
constexpr Unsupported unsupported[] = {
    {"texture*", "textures are not supported"},
    {"depth2d*", "textures are not supported"},
    {"depthcube*", "textures are not supported"},
    {"sampler", "textures and samplers are not supported"},
    {"simdgroup_matrix*", "simd-group matrices are not supported"},
    {"simdgroup_float*", "simd-group matrices are not supported"},
    {"simdgroup_half*", "simd-group matrices are not supported"},
    {"simdgroup_bfloat*", "simd-group matrices are not supported"},
    {"simdgroup_load", "simd-group matrices are not supported"},
    {"simdgroup_store", "simd-group matrices are not supported"},
    {"simdgroup_multiply*", "simd-group matrices are not supported"},
    {"simdgroup_async_copy*", "asynchronous copies are not supported"},
    {"make_filled_simdgroup_matrix", "simd-group matrices are not supported"},
    {"float2x*", "matrices are not supported; use vectors"},
    {"float3x*", "matrices are not supported; use vectors"},
    {"float4x*", "matrices are not supported; use vectors"},
    {"half2x*", "matrices are not supported; use vectors"},
    {"half3x*", "matrices are not supported; use vectors"},
    {"half4x*", "matrices are not supported; use vectors"},
    {"complex64_t", "complex numbers are not supported"},
    {"visible_function_table", "function pointers are not supported"},
    {"intersection_function_table", "function pointers are not supported"},
    {"raytracing", "ray tracing is not supported"},
    {"imageblock*", "imageblocks are not supported"},
    {"threadgroup_imageblock", "imageblocks are not supported"},
    {"os_log*", "logging is not supported"},
    {"double", "Metal has no double"},
    {"asm", "inline assembly is not supported"},
    {"__asm", "inline assembly is not supported"},
    {"__asm__", "inline assembly is not supported"},
    {"new", "Metal has no dynamic memory"},
    {"delete", "Metal has no dynamic memory"},
    {"throw", "Metal has no exceptions"},
    {"try", "Metal has no exceptions"},
    {"virtual", "Metal has no virtual functions"},
    {"thread_local", "Metal has no thread_local"},
};

} // namespace

const char* why_not(std::string_view word) {
  for (auto& row : unsupported) {
    bool prefix = row.word.back() == '*';
    if (prefix ? word.starts_with(row.word.substr(0, row.word.size() - 1)) : word == row.word) {
      return row.what;
    }
  }
  return nullptr;
}

} // namespace zmlx::msl
