// tests/cpp/lang_rows_gpu_test.cpp: row kernels printed for CUDA and Metal, compiled as C++ and run
// on the CPU, each thread of a block as a fibre, against the language's double precision.
#include <cmath>

#include "op_testing.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/fold.h"
#include "zmlx/runtime/cuda/nvrtc.h"
#include "zmlx/runtime/jit.h"
#include "zmlx/runtime/rowwise_gpu.h"

namespace zmlx::lang {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool supported = false; // fibres confuse the sanitizers
#else
constexpr bool supported = true;
#endif

/// Fibres that take turns: when all have come to a point where they wait, all go on.
constexpr const char* fibres = R"(
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>
#include <ucontext.h>
struct Block {
  std::vector<ucontext_t> threads;
  std::vector<bool> done;
  std::vector<uint64_t> values; // that lanes exchange
  ucontext_t scheduler;
  size_t at = 0;
  std::function<void()> body;
};
static Block* block;
static void fibre() {
  block->body();
  block->done[block->at] = true;
}
static void wait() {
  swapcontext(&block->threads[block->at], &block->scheduler);
}
template <typename T> static T exchanged(T x, unsigned mask) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  std::memcpy(&block->values[block->at], &x, sizeof(T));
  wait();
  T y;
  std::memcpy(&y, &block->values[block->at ^ mask], sizeof(T));
  wait();
  return y;
}
template <typename F> static void run_block(size_t threads, F body) {
  Block here;
  block = &here;
  here.body = body;
  here.threads.resize(threads);
  here.done.assign(threads, false);
  here.values.resize(threads);
  constexpr size_t bytes = 64 * 1024;
  std::unique_ptr<char[]> stacks(new char[threads * bytes]);
  for (size_t t = 0; t < threads; ++t) {
    getcontext(&here.threads[t]);
    here.threads[t].uc_stack.ss_sp = stacks.get() + t * bytes;
    here.threads[t].uc_stack.ss_size = bytes;
    here.threads[t].uc_link = &here.scheduler;
    makecontext(&here.threads[t], fibre, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (here.at = 0; here.at < threads; ++here.at) {
      if (!here.done[here.at]) {
        swapcontext(&here.scheduler, &here.threads[here.at]);
        left = true;
      }
    }
  }
}
#define one(name) static float name(float x) { return __builtin_##name(x); }
#define two(name) static float name(float x, float y) { return __builtin_##name(x, y); }
)";

constexpr const char* cuda = R"(
#define __device__
#define __forceinline__ inline
#define __global__ static
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__
one(expf) one(expm1f) one(logf) one(log1pf) one(sqrtf) one(sinf) one(cosf) one(atanf) one(asinf)
one(acosf) one(tanhf) one(erff) one(ceilf) one(truncf) one(floorf) one(rintf) one(fabsf)
two(copysignf) two(fmodf) two(powf)
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
static float __int_as_float(int32_t x) { return __builtin_bit_cast(float, x); }
static uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
struct Dim { uint32_t x; };
static Dim blockIdx;
#define threadIdx Dim{uint32_t(block->at)}
struct f16 { uint16_t bits; };
struct bf16 { uint16_t bits; };
static float to_float(f16) { return 0; }
static float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
template <typename T> T from_float(float) { return {}; }
struct Pointer {
  void* address;
  template <typename T> T* as() const { return static_cast<T*>(address); }
};
struct Extent {
  int64_t value;
  int64_t get() const { return value; }
};
static void wait_for_predecessor() {}
static void start_successor() {}
static int lane_index() { return int(block->at % 32); }
static int warp_index() { return int(block->at / 32); }
static void sync_block() { wait(); }
template <typename T> T shuffle_xor(T x, int mask) { return exchanged(x, unsigned(mask)); }
)";

constexpr const char* metal = R"(
using uint = unsigned int;
using ushort = unsigned short;
struct half { half(float) {} operator float() const { return 0; } };
using bfloat16_t = half;
struct uint2 { uint x, y; };
#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define threadgroup
template <typename T, typename U> T as_type(U x) { return __builtin_bit_cast(T, x); }
template <typename T> T simd_shuffle_xor(T x, ushort mask) { return exchanged(x, mask); }
#undef one
#undef two
#define one(name) static float name(float x) { return __builtin_##name##f(x); }
#define two(name) static float name(float x, float y) { return __builtin_##name##f(x, y); }
namespace metal {
enum class mem_flags { mem_threadgroup };
one(fabs) one(floor) one(rint) one(ceil) one(trunc) two(copysign) two(fmod)
static float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
namespace precise {
one(exp) one(log) one(sqrt) one(sin) one(cos) one(atan) one(asin) one(acos) one(tanh) two(pow)
static float rsqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
}
}
static void threadgroup_barrier(metal::mem_flags) { wait(); }
static int64_t elem_to_loc(int64_t i, const int* shape, const int64_t* strides, int ndim) {
  int64_t place = 0;
  for (int d = ndim - 1; d >= 0; --d) {
    place += i % shape[d] * strides[d];
    i /= shape[d];
  }
  return place;
}
)";

struct Example {
  const char* name;
  const char* text; // of x, a row's value r, and a column c
  const char* update = nullptr; // of a loop from r on, whose result is s
};
const Example examples[] = {
    {"softmax", "row_softmax(x)"},
    {"norm", "x * rsqrt(row_mean(x * x) + 0.001) * c"},
    {"of_the_row", "r * row_sum(x * c) + row_max(x) - row_min(x) * row_prod(1 + 0.001 * x)"},
    {"integers",
     "x + row_sum(x > 0 ? int64(1) : int64(0)) + row_max(int8(floor(10 * x))) + row_size"},
    {"bools", "row_max(x > 3) || row_min(x > -9) ? x : r"},
    {"no_reduction", "x * r + c"},
    {"loop", "x * s + row_max(exp(x))", "acc * 0.5 + sin(x) * c"},
};

/// x is transposed: its rows are strided, or contiguous in memory.
struct Data {
  Data(int64_t rows, int64_t n, bool strided) : rows(rows), n(n) {
    for (int64_t i = 0; i < rows * n; ++i) {
      x.push_back(static_cast<float>(std::sin(static_cast<double>(i) * 0.7)));
    }
    for (int64_t i = 0; i < rows; ++i) {
      r.push_back(0.5f + 0.25f * static_cast<float>(i));
    }
    for (int64_t i = 0; i < n; ++i) {
      c.push_back(static_cast<float>(std::cos(static_cast<double>(i))));
    }
    strides = {strided ? Strides{1, rows} : Strides{n, 1}, {1, 0}, {0, 1}};
  }
  std::vector<const void*> pointers() const {
    return {x.data(), r.data(), c.data()};
  }

  int64_t rows;
  int64_t n;
  std::vector<float> x, r, c;
  std::vector<Strides> strides;
};

struct Kernel {
  explicit Kernel(const Example& example)
      : value(value_of(example)),
        program(lower({value}, {"x", "r", "c"}, {{}, {}, {}}, {false, true, false})) {}

  static Expr value_of(const Example& example) {
    std::vector<FoldText> folds;
    if (example.update) {
      folds.push_back({"s", "acc", "r", example.update, ""});
    }
    return parse_folds({example.text, {"x", "r", "c"}}, folds);
  }
  void expect(const Data& data, const std::vector<float>& got) const {
    auto n = static_cast<size_t>(data.n);
    for (size_t row = 0; row < static_cast<size_t>(data.rows); ++row) {
      std::vector<double> x(n);
      for (size_t i = 0; i < n; ++i) {
        x[i] = data.x[static_cast<size_t>(
            static_cast<int64_t>(row) * data.strides[0][0] +
            static_cast<int64_t>(i) * data.strides[0][1])];
      }
      auto want = evaluate_row(
          value, {"x", "r", "c"}, {x, {data.r[row]}, {data.c.begin(), data.c.end()}}, n);
      for (size_t i = 0; i < want.size(); ++i) {
        EXPECT_NEAR(got[row * want.size() + i], want[i], 1e-4 * std::max(1.0, std::abs(want[i])))
            << "row " << row << " of " << data.rows << ", element " << i << " of " << data.n;
      }
    }
  }

  Expr value;
  Program program;
};

struct Geometry {
  int rows;
  int n;
  bool strided;
  int width; // CUDA: multiprocessors; Metal: threads of a group
};

using RunText = void (*)(const void* const* in, float* out);

/// All examples in all geometries are one program: `text` gives the namespace's content, with a
/// function run() over in and out.
template <typename F>
void expect_all(const std::string& before, const std::vector<Geometry>& geometries, F text) {
  if (!supported || !jit::available()) {
    GTEST_SKIP() << "needs a compiler, and no sanitizers";
  }
  std::string program = before;
  int count = 0;
  for (auto& example : examples) {
    Kernel kernel(example);
    for (auto& of : geometries) {
      auto n = std::to_string(count++);
      program += "namespace k" + n + " {\n" + text(kernel, of) + "}\nextern \"C\" void run" + n +
          "(const void* const* in, float* out) {\n  k" + n + "::run(in, out);\n}\n";
    }
  }
  auto library = jit::compile(program);
  count = 0;
  for (auto& example : examples) {
    Kernel kernel(example);
    for (auto& of : geometries) {
      SCOPED_TRACE(example.name);
      Data data(of.rows, of.n, of.strided);
      std::vector<float> out(data.x.size());
      auto name = "run" + std::to_string(count++);
      reinterpret_cast<RunText>(library->symbol(name.c_str()))(data.pointers().data(), out.data());
      kernel.expect(data, out);
    }
  }
}

TEST(LangRowsGpu, cuda_kernels_compute_their_expressions) {
  // A warp a row, a block a row, and a loop; rows of whole packs and others.
  std::vector<Geometry> geometries = {
      {10, 100, true, 0},
      {5, 97, false, 0},
      {2, 1500, false, 132},
      {3, 1501, false, 132},
      {1, 40000, false, 1},
      {1, 40001, false, 1}};
  expect_all(fibres + std::string(cuda), geometries, [](const Kernel& kernel, const Geometry& of) {
    RowTexts texts;
    cuda::Device device;
    device.multiprocessors = of.width;
    ElementwiseText text{kernel.program, {Dtype::f32, Dtype::f32, Dtype::f32}, {Dtype::f32}};
    auto strides = Data(of.rows, of.n, of.strided).strides;
    auto launch = rows_cuda(text, texts, {of.rows, of.n}, strides, device).launches[0];
    std::string arguments;
    for (auto& a : launch.arguments) {
      auto i = std::to_string(a.index);
      arguments += (arguments.empty() ? "" : ", ") +
          (a.kind == cuda::Argument::Kind::in        ? "Pointer{const_cast<void*>(in[" + i + "])}"
               : a.kind == cuda::Argument::Kind::out ? std::string("Pointer{out}")
                                                     : "Extent{" + std::to_string(a.offset) + "}");
    }
    return launch.text() +
        "static void run(const void* const* in, float* out) {\n  for (blockIdx.x = 0; blockIdx.x < " +
        std::to_string(launch.grid[0]) + "; ++blockIdx.x)\n    run_block(" +
        std::to_string(launch.block[0]) + ", [&] { " + launch.kernel + "(" + arguments +
        "); });\n}\n";
  });
}

TEST(LangRowsGpu, metal_kernels_compute_their_expressions) {
  std::vector<Geometry> geometries = {{3, 20, true, 32}, {2, 700, false, 256}};
  expect_all(fibres + std::string(metal), geometries, [](const Kernel& kernel, const Geometry& of) {
    auto text =
        metal_rows_text({kernel.program, {Dtype::f32, Dtype::f32, Dtype::f32}, {Dtype::f32}});
    auto strides = Data(of.rows, of.n, of.strided).strides;
    std::string views;
    for (size_t i = 0; i < 3; ++i) {
      auto k = std::to_string(i);
      views += "  const int in" + k + "_shape[] = {" + std::to_string(of.rows) + ", " +
          std::to_string(of.n) + "};\n  const int64_t in" + k + "_strides[] = {" +
          std::to_string(strides[i][0]) + ", " + std::to_string(strides[i][1]) +
          "};\n  const int in" + k + "_ndim = 2;\n  auto in" + k +
          " = static_cast<const float*>(in[" + k + "]);\n";
    }
    // The threads of a group share what is in its memory.
    auto body = text.kernel;
    for (size_t at = 0; (at = body.find("threadgroup ", at)) != std::string::npos; at += 7) {
      body.replace(at, 12, "static ");
    }
    return text.prelude + "static void run(const void* const* in, float* out0) {\n" + views +
        "  struct Place { uint x; };\n  for (uint group_ = 0; group_ < " + std::to_string(of.rows) +
        "; ++group_)\n    run_block(" + std::to_string(of.width) +
        ", [&] {\n      const Place threadgroup_position_in_grid{group_};\n"
        "      const Place thread_position_in_threadgroup{uint(block->at)};\n"
        "      const Place threads_per_threadgroup{uint(block->threads.size())};\n"
        "      const uint thread_index_in_simdgroup = uint(block->at % 32);\n"
        "      const uint simdgroup_index_in_threadgroup = uint(block->at / 32);\n" +
        body + "    });\n}\n";
  });
}

TEST(LangRowsGpu, row_kernels_compile_in_every_kind_of_dtype) {
  if (std::string why; cuda::nvrtc_version(&why).empty()) {
    GTEST_SKIP() << why;
  }
  auto compiles = [](Dtype dtype, const Shape& shape, const Strides& strides) {
    Expr x = input("x");
    std::vector<Expr> roots = {row_sum(x), row_mean(x), row_prod(x), row_max(x), row_min(x)};
    roots.push_back(x + roots[3] + row_size());
    auto program = lower(roots, {"x"}, {{dtype}});
    ElementwiseText kernel{program, {dtype}, {}};
    for (auto step : program.results) {
      kernel.out.push_back(program.steps[static_cast<size_t>(step)].type.dtype);
    }
    RowTexts texts;
    auto launch = rows_cuda(kernel, texts, shape, {strides}, {90}).launches[0];
    EXPECT_NO_THROW(cuda::compile(launch.source, {launch.kernel}, 90, launch.text()))
        << name_of(dtype);
    return launch.kernel;
  };
  for (auto dtype : {Dtype::boolean, Dtype::i8, Dtype::u32, Dtype::i64, Dtype::f16, Dtype::f32}) {
    EXPECT_EQ(compiles(dtype, {2000, 60}, {60, 1}), "zmlx_rows<32, 2>");
  }
  EXPECT_EQ(compiles(Dtype::bf16, {3, 5, 1 << 20}, {1, 9, 45}), "zmlx_rows<1024, 0>");
}

} // namespace
} // namespace zmlx::lang
