// tests/cpp/cuda_kernels_test.cpp: CUDA kernels run on the CPU (cuda_host.h), against references:
// their arithmetic of indices, barriers and copies, without a GPU.
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "op_testing.h"
#include "zmlx/kernel/cuda/source.h"
#include "zmlx/runtime/jit.h"

namespace zmlx {
namespace {

using namespace testing;

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
constexpr bool supported = true;
#else
constexpr bool supported = false; // coroutines of our own confuse the sanitizers
#endif

constexpr cuda::Device device{90, 132, 227 * 1024};

struct Example {
  const Op* op;
  const Case* example;
  mx::Dtype dtype;
  Arrays inputs;
  Types in, out;
  cuda::Kernel kernel;
};

/// Cases that are quick when one core plays all threads.
bool small(const cuda::Kernel& kernel) {
  uint64_t threads = 0;
  for (auto& launch : kernel.launches) {
    uint64_t own = 1;
    for (int i = 0; i < 3; ++i) {
      own *= uint64_t{launch.grid[static_cast<size_t>(i)]} * launch.block[static_cast<size_t>(i)];
    }
    threads += own;
  }
  return threads && threads <= 1 << 17;
}

std::vector<Example> examples() {
  std::vector<Example> list;
  for (auto* op : all_ops()) {
    for (auto& example : op->cases) {
      for (auto dtype : {mx::bfloat16, mx::float16, mx::float32}) {
        auto inputs = example.inputs(dtype);
        auto in = types_of(inputs);
        auto out = op->types(in, example.attrs);
        auto kernel = op->cuda ? op->cuda(in, out, example.attrs, device) : cuda::Kernel{};
        if (small(kernel)) {
          list.push_back({op, &example, dtype, std::move(inputs), in, out, std::move(kernel)});
        }
      }
    }
  }
  return list;
}

/// As cuda_host.h has it.
struct Argument {
  void* address;
  int64_t extent;
  int32_t integer;
  float real;
};
using Run = void (*)(const uint32_t* grid, const uint32_t* block, size_t shared, const Argument*);

const char* const parameter_of[] = {
    "Pointer{a[$].address, nullptr}", // in the order of cuda::Argument::Kind
    "Pointer{a[$].address, nullptr}",
    "Pointer{a[$].address, nullptr}",
    "Pointer{a[$].address, nullptr}",
    "Extent{a[$].extent, nullptr}",
    "Extent{a[$].extent, nullptr}",
    "a[$].integer",
    "a[$].real",
    "Extent{a[$].extent, nullptr}",
};

/// `extern "C" void run_<number>(...)`, which launches one instantiation.
std::string runner(const cuda::Launch& launch, size_t number) {
  std::string call;
  for (size_t i = 0; i < launch.arguments.size(); ++i) {
    std::string one = parameter_of[static_cast<size_t>(launch.arguments[i].kind)];
    if (auto at = one.find('$'); at != std::string::npos) {
      one.replace(at, 1, std::to_string(i));
    }
    call += (i ? ", " : "") + one;
  }
  return "extern \"C\" void run_" + std::to_string(number) +
      "(const uint32_t* grid, const uint32_t* block, size_t shared, const SimtArgument* a) {\n"
      "  simt::launch(grid, block, shared, [&] { " +
      launch.kernel + "(" + call + "); });\n}\n";
}

std::string text_of(const char* path) {
  std::ifstream file(std::string(ZMLX_SOURCE_DIR) + "/" + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// One library for each source, of all instantiations that the examples ask for.
class Library {
 public:
  explicit Library(const std::vector<Example>& examples) {
    // By source, then generated text, then instantiation.
    std::map<std::string, std::map<std::string, std::map<std::string, const cuda::Launch*>>> wanted;
    for (auto& example : examples) {
      for (auto& launch : example.kernel.launches) {
        wanted[launch.source][launch.text()].emplace(launch.kernel, &launch);
      }
    }
    const auto host =
        text_of("zmlx/kernel/msl/library/host_switch.h") + text_of("tests/cpp/cuda_host.h");
    for (auto& [source, texts] : wanted) {
      std::string program = host + cuda::source_text(source);
      size_t number = 0;
      for (auto& [text, kernels] : texts) {
        program += "namespace text_" + std::to_string(number) + " {\n" + text;
        for (auto& [name, launch] : kernels) {
          program += runner(*launch, number++);
        }
        program += "}\n";
      }
      auto library = jit::compile(program);
      number = 0;
      for (auto& [text, kernels] : texts) {
        for (auto& [name, launch] : kernels) {
          auto symbol = "run_" + std::to_string(number++);
          runs_[source + text + name] = reinterpret_cast<Run>(library->symbol(symbol.c_str()));
        }
      }
      libraries_.push_back(std::move(library));
    }
  }

  Run find(const cuda::Launch& launch) const {
    return runs_.at(launch.source + launch.text() + launch.kernel);
  }

 private:
  std::map<std::string, Run> runs_;
  std::vector<std::shared_ptr<const jit::Library>> libraries_;
};

/// Memory whose neighbourhood is checked: a kernel may write `bytes` of it and nothing else.
class Guarded {
 public:
  explicit Guarded(size_t bytes) : bytes_(bytes), memory_(bytes + 2 * guard, std::byte{0xFF}) {}
  std::byte* data() {
    auto address = reinterpret_cast<uintptr_t>(memory_.data()) + guard / 2;
    return reinterpret_cast<std::byte*>((address + 255) / 256 * 256);
  }
  size_t size() const {
    return bytes_;
  }
  bool is_intact() {
    auto clean = [](const std::byte* from, const std::byte* to) {
      return std::all_of(from, to, [](std::byte b) { return b == std::byte{0xFF}; });
    };
    return clean(memory_.data(), data()) && clean(data() + bytes_, memory_.data() + memory_.size());
  }

 private:
  static constexpr size_t guard = 1024;
  size_t bytes_;
  std::vector<std::byte> memory_;
};

/// The outputs' bytes.
std::vector<Guarded> run(const Example& example, const Library& library) {
  Arrays inputs = example.inputs;
  for (auto& x : inputs) {
    x = mx::contiguous(x);
  }
  mx::eval(inputs);
  std::vector<Guarded> in; // aligned as a GPU's allocations are
  for (auto& x : inputs) {
    in.emplace_back(x.nbytes());
    if (x.nbytes()) {
      std::memcpy(in.back().data(), x.data<char>(), x.nbytes());
    }
  }
  std::vector<Guarded> out;
  for (auto& type : example.out) {
    out.emplace_back(type.bytes());
  }
  for (auto [output, input] : example.op->in_place) {
    auto& from = in[in_place_input(input, in.size())];
    std::memcpy(out[static_cast<size_t>(output)].data(), from.data(), from.size());
  }
  Guarded scratch(example.kernel.scratch);
  std::vector<int32_t> counters(cuda::max_counters, 0);
  for (auto& launch : example.kernel.launches) {
    std::vector<Argument> arguments;
    for (auto& argument : launch.arguments) {
      using Kind = cuda::Argument::Kind;
      auto index = static_cast<size_t>(argument.index);
      Argument a{nullptr, static_cast<int64_t>(argument.offset), argument.integer, argument.real};
      switch (argument.kind) {
        case Kind::in:
          a.address = in[index].data() + argument.offset;
          break;
        case Kind::out:
          a.address = out[index].data() + argument.offset;
          break;
        case Kind::scratch:
          a.address = scratch.data() + argument.offset;
          break;
        case Kind::counter:
          a.address = counters.data() + argument.index;
          break;
        case Kind::in_dim:
          a.extent = example.in[index].shape[argument.axis];
          break;
        case Kind::out_dim:
          a.extent = example.out[index].shape[argument.axis];
          break;
        default:
          break;
      }
      arguments.push_back(a);
    }
    library.find(launch)(launch.grid.data(), launch.block.data(), launch.shared, arguments.data());
  }
  EXPECT_EQ(counters, std::vector<int32_t>(cuda::max_counters, 0)) << "a counter was left";
  EXPECT_TRUE(scratch.is_intact()) << "scratch memory was written beyond its end";
  for (size_t i = 0; i < in.size(); ++i) {
    EXPECT_TRUE(in[i].is_intact()) << "memory around input " << i << " was written";
  }
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_TRUE(out[i].is_intact()) << "output " << i << " was written beyond its end";
  }
  return out;
}

TEST(CudaKernels, compute_on_the_cpu_what_their_references_do) {
  if (!supported || !jit::available()) {
    GTEST_SKIP() << "needs a compiler and x86-64 without sanitizers";
  }
  auto list = examples();
  ASSERT_GT(list.size(), 50u);
  Library library(list);
  for (auto& example : list) {
    SCOPED_TRACE(
        example.op->name + ", " + example.example->name + ", " + name_of(dtype_of(example.dtype)));
    auto memory = run(example, library);
    Arrays got;
    for (size_t i = 0; i < memory.size(); ++i) {
      auto& shape = example.out[i].shape;
      mx::array value(
          mx::allocator::malloc(example.out[i].bytes()),
          mx::Shape(shape.begin(), shape.end()),
          mlx_dtype(example.out[i].dtype));
      if (value.nbytes()) {
        std::memcpy(value.data<char>(), memory[i].data(), value.nbytes());
      }
      got.push_back(value);
    }
    auto want = example.op->reference(in_float32(example.inputs), example.example->attrs);
    got = comparable(got, example.dtype);
    want = comparable(want, example.dtype);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE("output " + std::to_string(i));
      expect_close(got[i], want[i], tolerance_of(example.dtype));
    }
  }
}

} // namespace
} // namespace zmlx
