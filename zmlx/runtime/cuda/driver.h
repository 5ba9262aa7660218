// zmlx/runtime/cuda/driver.h: the part of NVIDIA's driver API that is used, found at run time, so
// that nothing of CUDA is needed to build or load the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "zmlx/kernel/cuda/launch.h"

struct CUfunc_st;
struct CUstream_st;

namespace zmlx::cuda {

using Result = int;
using Address = unsigned long long;
using Function = CUfunc_st*;
using Stream = CUstream_st*;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Graph = struct CUgraph_st*;
using GraphExec = struct CUgraphExec_st*;

/// CUlaunchAttribute and CUlaunchConfig, as the driver reads them.
struct LaunchAttribute {
  int id;
  int pad;
  union {
    char bytes[64];
    int integer;
  } value;
};
struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56);
static_assert(offsetof(LaunchConfig, stream) == 32 && offsetof(LaunchConfig, attributes) == 40);

struct Driver {
  Result (*init)(unsigned flags);
  Result (*error_string)(Result, const char** text);
  Result (*device_get)(int* device, int ordinal);
  Result (*device_attribute)(int* value, int attribute, int device);
  Result (*device_memory)(size_t* bytes, int device);
  Result (*primary_context)(Context*, int device);
  Result (*set_context)(Context);
  Result (*stream_context)(Stream, Context*);
  Result (*stream_create)(Stream*, unsigned flags);
  Result (*stream_synchronize)(Stream);
  Result (*begin_capture)(Stream, int mode);
  Result (*end_capture)(Stream, Graph*);
  Result (*graph_instantiate)(GraphExec*, Graph, unsigned long long flags);
  Result (*graph_launch)(GraphExec, Stream);
  Result (*graph_destroy)(Graph);
  Result (*graph_exec_destroy)(GraphExec);
  Result (*module_load)(Module*, const void* image);
  Result (*module_function)(Function*, Module, const char* name);
  Result (*function_set)(Function, int attribute, int value);
  Result (*launch)(const LaunchConfig*, Function, void** parameters, void** extra);
  Result (*allocate)(Address*, size_t bytes, Stream);
  Result (*fill)(Address, unsigned char value, size_t bytes, Stream);
  Result (*free_async)(Address, Stream);
  Result (*free)(Address);
  Result (*free_host)(void*);

  /// Throws std::runtime_error unless `result` is success.
  void check(Result result, const char* what) const;
};

/// The driver, or nullptr where there is none; `why_no_driver()` then says why.
const Driver* driver();
const std::string& why_no_driver();

/// One GPU with its primary context, which MLX uses too.
struct Gpu {
  Device device;
  Context context = nullptr;
  Stream stream = nullptr; // ours, for captures and what belongs to no stream
  size_t memory_bytes = 0;
  bool is_managed = false; // the CPU may read managed memory while the GPU works
};
/// The GPU of that number; throws std::runtime_error in words when it cannot be had.
const Gpu& gpu(int ordinal = 0);

} // namespace zmlx::cuda
