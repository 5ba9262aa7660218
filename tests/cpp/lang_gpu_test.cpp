// tests/cpp/lang_gpu_test.cpp: kernels printed for CUDA, compiled as C++ and run on the CPU a
// thread at a time, against the language's double precision. msl_test.cpp runs those for Metal.
#include <cmath>

#include "op_testing.h"
#include "zmlx/kernel/lang/derive.h"
#include "zmlx/kernel/lang/functions.h"
#include "zmlx/kernel/lang/print.h"
#include "zmlx/runtime/elementwise_gpu.h"
#include "zmlx/runtime/jit.h"

namespace zmlx::lang {
namespace {

constexpr int rows = 3;
constexpr int columns = 5;
constexpr const char* names[] = {"a", "b", "c"};

/// Types, and what makes functions.
constexpr const char* common = R"(
using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;
using uint64_t = unsigned long;
#define one(name) static float name(float x) { return __builtin_##name(x); }
#define two(name) static float name(float x, float y) { return __builtin_##name(x, y); }
)";

/// What kernel/cuda/base.cuh and NVRTC give a kernel, for one thread.
constexpr const char* cuda = R"(
#define __device__
#define __forceinline__ inline
#define __global__ static
#define __launch_bounds__(n)
one(expf) one(expm1f) one(logf) one(log1pf) one(sqrtf) one(sinf) one(cosf) one(atanf) one(asinf)
one(acosf) one(tanhf) one(erff) one(ceilf) one(truncf) one(floorf) one(rintf) one(fabsf)
two(copysignf) two(fmodf) two(powf)
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float fmaf(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static float __uint_as_float(uint32_t x) { return __builtin_bit_cast(float, x); }
static float __int_as_float(int32_t x) { return __builtin_bit_cast(float, x); }
static uint32_t __float_as_uint(float x) { return __builtin_bit_cast(uint32_t, x); }
struct Dim { uint32_t x; };
static Dim threadIdx, blockIdx, blockDim, gridDim;
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
)";

struct Case {
  Expr value;
  Program program;
};

/// A call of a function on inputs a, b and c.
Case case_of(const Function& row) {
  std::vector<Expr> args;
  for (int i = 0; i < row.arity; ++i) {
    args.push_back(input(names[i]));
  }
  Expr value = call(row.name, args);
  return {value, lower({value}, {"a", "b", "c"}, {{}, {}, {}})};
}

bool on_floats(const Function& row) {
  return row.typing != Typing::bits;
}

/// Arguments of (row, column): a is one of 15 values in columns' order, b a row, c one value.
struct Data {
  std::vector<float> a, b, c;
  const void* pointers[3];

  Data() : b{0.62f, 0.11f, 0.93f, 0.37f, 0.5f}, c{0.81f} {
    for (int i = 0; i < rows * columns; ++i) {
      a.push_back(0.07f + 0.06f * static_cast<float>(i));
    }
    pointers[0] = a.data();
    pointers[1] = b.data();
    pointers[2] = c.data();
  }
  std::vector<double> at(int row, int column) const {
    return {a[static_cast<size_t>(column * rows + row)], b[static_cast<size_t>(column)], c[0]};
  }
};
const std::vector<Strides> strides = {{1, rows}, {0, 1}, {0, 0}};

void expect_values(const Case& example, const Data& data, const float* got, const char* name) {
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < columns; ++k) {
      double want = evaluate(example.value, {"a", "b", "c"}, data.at(r, k));
      EXPECT_NEAR(got[r * columns + k], want, 2e-5 * std::max(1.0, std::abs(want)))
          << name << " at " << r << ", " << k;
    }
  }
}

using Run = void (*)(const void* const* in, float* out);

Run compiled(const std::string& text, std::shared_ptr<const jit::Library>& library) {
  library = jit::compile(text);
  return reinterpret_cast<Run>(library->symbol("run"));
}

class LangGpu : public ::testing::TestWithParam<const Function*> {
 protected:
  void SetUp() override {
    if (!jit::available()) {
      GTEST_SKIP() << "there is no C++ compiler";
    }
  }
  std::shared_ptr<const jit::Library> library_;
};

TEST_P(LangGpu, a_cuda_kernel_computes_its_expression_on_strided_inputs) {
  auto example = case_of(*GetParam());
  ElementwiseText kernel{example.program, {Dtype::f32, Dtype::f32, Dtype::f32}, {Dtype::f32}};
  CudaTexts texts;
  auto made = elementwise_cuda(kernel, texts, {rows, columns}, strides, {});
  auto& launch = made.launches[0];
  std::string arguments;
  for (auto& a : launch.arguments) {
    auto n = std::to_string(a.index);
    arguments += (arguments.empty() ? "" : ", ") +
        (a.kind == cuda::Argument::Kind::in        ? "Pointer{const_cast<void*>(in[" + n + "])}"
             : a.kind == cuda::Argument::Kind::out ? std::string("Pointer{out}")
                                                   : "Extent{" + std::to_string(a.offset) + "}");
  }
  // Fewer threads than elements, so that each has several.
  auto run = compiled(
      common + std::string(cuda) + launch.text() +
          "extern \"C\" void run(const void* const* in, float* out) {\n"
          "  blockDim.x = 4;\n  gridDim.x = 2;\n"
          "  for (blockIdx.x = 0; blockIdx.x < 2; ++blockIdx.x)\n"
          "    for (threadIdx.x = 0; threadIdx.x < 4; ++threadIdx.x)\n      " +
          launch.kernel + "(" + arguments + ");\n}\n",
      library_);
  Data data;
  float out[rows * columns] = {};
  run(data.pointers, out);
  expect_values(example, data, out, GetParam()->name);
}

std::vector<const Function*> float_functions() {
  std::vector<const Function*> out;
  for (auto& row : functions()) {
    if (on_floats(row)) {
      out.push_back(&row);
    }
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(
    Functions,
    LangGpu,
    ::testing::ValuesIn(float_functions()),
    [](auto& info) { return std::string(info.param->name); });

} // namespace
} // namespace zmlx::lang
