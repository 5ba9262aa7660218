// zmlx/runtime/cuda/nvrtc.cpp: finds libnvrtc beside MLX or on the system, and runs it.
#include "zmlx/runtime/cuda/nvrtc.h"

#include <dlfcn.h>

#include <filesystem>
#include <sstream>
#include <stdexcept>

#include "mlx/version.h"
#include "zmlx/kernel/cuda/launch.h"
#include "zmlx/runtime/cache.h"

namespace zmlx::cuda {
namespace {

namespace fs = std::filesystem;

using Program = struct NvrtcProgram*;

struct Nvrtc {
  int (*version)(int* major, int* minor);
  const char* (*error_string)(int);
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*destroy)(Program*);
  int (*add_name)(Program, const char*);
  int (*compile)(Program, int, const char* const*);
  int (*lowered_name)(Program, const char*, const char**);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*cubin_size)(Program, size_t*);
  int (*cubin)(Program, char*);
  std::string error;
};

/// NVIDIA's packages lie beside MLX's: site-packages/mlx/lib/libmlx.so and
/// site-packages/nvidia/*/lib.
std::vector<std::string> candidates() {
  constexpr const char* versions[] = {"libnvrtc.so.13", "libnvrtc.so.12"};
  std::vector<std::string> paths;
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&mlx::core::version), &info) && info.dli_fname) {
    std::error_code ignored;
    auto library = fs::canonical(info.dli_fname, ignored);
    auto packages = library.parent_path().parent_path().parent_path() / "nvidia";
    for (auto* version : versions) {
      for (auto& folder : fs::directory_iterator(packages, ignored)) {
        auto path = folder.path() / "lib" / version;
        if (fs::exists(path, ignored)) {
          paths.push_back(path.string());
        }
      }
    }
  }
  paths.insert(paths.end(), std::begin(versions), std::end(versions));
  return paths;
}

/// NVRTC opens this library by name when it compiles, which a sanitizer's dlopen does not find
/// beside it; one that is loaded already is found.
void load_builtins_beside(const std::string& nvrtc) {
  std::error_code ignored;
  for (auto& file : fs::directory_iterator(fs::path(nvrtc).parent_path(), ignored)) {
    if (file.path().filename().string().starts_with("libnvrtc-builtins.so")) {
      dlopen(file.path().c_str(), RTLD_NOW | RTLD_LOCAL);
    }
  }
}

Nvrtc load() {
  Nvrtc n{};
  void* library = nullptr;
  for (auto& path : candidates()) {
    if (!library && (library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL))) {
      load_builtins_beside(path);
    }
  }
  if (!library) {
    n.error = "NVRTC (libnvrtc.so.13 or .12) is not installed; pip install nvidia-cuda-nvrtc";
    return n;
  }
  auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function) {
      n.error = std::string("NVRTC has no ") + name;
    }
  };
  find(n.version, "nvrtcVersion");
  find(n.error_string, "nvrtcGetErrorString");
  find(n.create, "nvrtcCreateProgram");
  find(n.destroy, "nvrtcDestroyProgram");
  find(n.add_name, "nvrtcAddNameExpression");
  find(n.compile, "nvrtcCompileProgram");
  find(n.lowered_name, "nvrtcGetLoweredName");
  find(n.log_size, "nvrtcGetProgramLogSize");
  find(n.log, "nvrtcGetProgramLog");
  find(n.cubin_size, "nvrtcGetCUBINSize");
  find(n.cubin, "nvrtcGetCUBIN");
  return n;
}

const Nvrtc& nvrtc() {
  static const Nvrtc once = load();
  return once;
}

/// One program; freed whatever happens.
class Compilation {
 public:
  Compilation(
      std::string_view file,
      const std::string& text,
      const std::vector<std::string>& instantiations)
      : file_(file), instantiations_(instantiations) {
    check(nvrtc().create(&program_, text.c_str(), file_.c_str(), 0, nullptr, nullptr));
  }
  ~Compilation() {
    nvrtc().destroy(&program_);
  }
  Compilation(const Compilation&) = delete;
  Compilation& operator=(const Compilation&) = delete;

  /// The mangled names, one a line, an empty line, then the machine code.
  std::string run(const std::string& architecture) {
    for (auto& name : instantiations_) {
      check(nvrtc().add_name(program_, name.c_str()));
    }
    auto target = "--gpu-architecture=" + architecture;
    const char* options[] = {target.c_str(), "-std=c++17", "-default-device"};
    check(nvrtc().compile(program_, 3, options));
    std::string out;
    for (auto& name : instantiations_) {
      const char* lowered = nullptr;
      check(nvrtc().lowered_name(program_, name.c_str(), &lowered));
      out.append(lowered).push_back('\n');
    }
    out.push_back('\n');
    size_t bytes = 0;
    check(nvrtc().cubin_size(program_, &bytes));
    auto start = out.size();
    out.resize(start + bytes);
    check(nvrtc().cubin(program_, out.data() + start));
    return out;
  }

 private:
  void check(int result) {
    if (result == 0) {
      return;
    }
    std::string log;
    size_t bytes = 0;
    if (program_ && nvrtc().log_size(program_, &bytes) == 0 && bytes > 1) {
      log.resize(bytes);
      nvrtc().log(program_, log.data());
      log.resize(bytes - 1);
    }
    std::string names;
    for (auto& name : instantiations_) {
      names += (names.empty() ? "" : ", ") + name;
    }
    throw std::runtime_error(
        "[cuda] " + file_ + " does not compile for " + names + ": " + nvrtc().error_string(result) +
        "\n" + log);
  }

  std::string file_;
  const std::vector<std::string>& instantiations_;
  Program program_ = nullptr;
};

/// Features of one generation alone (wgmma, TMA) need the suffix.
std::string target_of(int architecture) {
  return "sm_" + std::to_string(architecture) + (architecture >= 90 ? "a" : "");
}

} // namespace

std::string nvrtc_version(std::string* why) {
  int major = 0, minor = 0;
  if (!nvrtc().error.empty() || nvrtc().version(&major, &minor) != 0) {
    if (why) {
      *why = nvrtc().error;
    }
    return "";
  }
  return std::to_string(major) + "." + std::to_string(minor);
}

Binary compile(
    std::string_view file,
    const std::vector<std::string>& instantiations,
    int architecture,
    std::string_view more) {
  auto text = (file.empty() ? std::string() : source_text(file)).append(more);
  std::string why;
  auto version = nvrtc_version(&why);
  if (version.empty()) {
    throw std::runtime_error("[cuda] " + why + ".");
  }
  auto target = target_of(architecture);
  std::string key = version + '\n' + target + '\n' + text;
  for (auto& name : instantiations) {
    key += '\n' + name;
  }
  std::istringstream stored(
      cached("cubin", key, [&] { return Compilation(file, text, instantiations).run(target); }));
  Binary binary;
  for (std::string line; std::getline(stored, line) && !line.empty();) {
    binary.names.push_back(line);
  }
  binary.cubin.assign(std::istreambuf_iterator<char>(stored), {});
  if (binary.names.size() != instantiations.size() || binary.cubin.empty()) {
    throw std::runtime_error("[cuda] the cached code of " + std::string(file) + " is damaged.");
  }
  return binary;
}

} // namespace zmlx::cuda
