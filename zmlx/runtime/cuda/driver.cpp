// zmlx/runtime/cuda/driver.cpp: loads libcuda and opens a device.
#include "zmlx/runtime/cuda/driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>

namespace zmlx::cuda {
namespace {

// Values of CUdevice_attribute.
constexpr int multiprocessor_count = 16;
constexpr int capability_major = 75;
constexpr int capability_minor = 76;
constexpr int concurrent_managed_access = 89;
constexpr int shared_bytes_optin = 97;
constexpr unsigned non_blocking = 1;

struct Loaded {
  Driver driver{};
  std::string error;

  Loaded() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      error = "there is no NVIDIA driver (libcuda.so.1)";
      return;
    }
    auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
      if (!function && error.empty()) {
        error = std::string("NVIDIA's driver is too old: it has no ") + name;
      }
    };
    auto& d = driver;
    find(d.init, "cuInit");
    find(d.error_string, "cuGetErrorString");
    find(d.device_get, "cuDeviceGet");
    find(d.device_attribute, "cuDeviceGetAttribute");
    find(d.device_memory, "cuDeviceTotalMem_v2");
    find(d.primary_context, "cuDevicePrimaryCtxRetain");
    find(d.set_context, "cuCtxSetCurrent");
    find(d.stream_context, "cuStreamGetCtx");
    find(d.stream_create, "cuStreamCreate");
    find(d.stream_synchronize, "cuStreamSynchronize");
    find(d.begin_capture, "cuStreamBeginCapture_v2");
    find(d.end_capture, "cuStreamEndCapture");
    find(d.graph_instantiate, "cuGraphInstantiateWithFlags");
    find(d.graph_launch, "cuGraphLaunch");
    find(d.graph_destroy, "cuGraphDestroy");
    find(d.graph_exec_destroy, "cuGraphExecDestroy");
    find(d.module_load, "cuModuleLoadData");
    find(d.module_function, "cuModuleGetFunction");
    find(d.function_set, "cuFuncSetAttribute");
    find(d.launch, "cuLaunchKernelEx");
    find(d.allocate, "cuMemAllocAsync");
    find(d.fill, "cuMemsetD8Async");
    find(d.free_async, "cuMemFreeAsync");
    find(d.free, "cuMemFree_v2");
    find(d.free_host, "cuMemFreeHost");
    if (error.empty() && d.init(0) != 0) {
      error = "NVIDIA's driver finds no device (cuInit failed)";
    }
  }
};

const Loaded& loaded() {
  static const Loaded once;
  return once;
}

Gpu open(int ordinal) {
  auto* d = driver();
  if (!d) {
    throw std::runtime_error("[cuda] " + why_no_driver() + ".");
  }
  int device = 0;
  d->check(d->device_get(&device, ordinal), "cuDeviceGet");
  auto attribute = [&](int which) {
    int value = 0;
    d->check(d->device_attribute(&value, which, device), "cuDeviceGetAttribute");
    return value;
  };
  Gpu gpu;
  gpu.device.architecture = 10 * attribute(capability_major) + attribute(capability_minor);
  gpu.device.multiprocessors = attribute(multiprocessor_count);
  gpu.device.shared_bytes = static_cast<size_t>(attribute(shared_bytes_optin));
  gpu.is_managed = attribute(concurrent_managed_access) != 0;
  d->check(d->device_memory(&gpu.memory_bytes, device), "cuDeviceTotalMem");
  d->check(d->primary_context(&gpu.context, device), "cuDevicePrimaryCtxRetain");
  d->check(d->set_context(gpu.context), "cuCtxSetCurrent");
  d->check(d->stream_create(&gpu.stream, non_blocking), "cuStreamCreate");
  return gpu;
}

} // namespace

void Driver::check(Result result, const char* what) const {
  if (result != 0) {
    const char* text = nullptr;
    error_string(result, &text);
    throw std::runtime_error(
        std::string("[cuda] ") + what +
        " failed: " + (text ? text : "error " + std::to_string(result)) + ".");
  }
}

const Driver* driver() {
  return loaded().error.empty() ? &loaded().driver : nullptr;
}

const std::string& why_no_driver() {
  return loaded().error;
}

const Gpu& gpu(int ordinal) {
  static std::mutex mutex;
  static std::map<int, Gpu> open_gpus;
  std::lock_guard lock(mutex);
  auto it = open_gpus.find(ordinal);
  return it != open_gpus.end() ? it->second
                               : open_gpus.emplace(ordinal, open(ordinal)).first->second;
}

} // namespace zmlx::cuda
