// bench/linear_bench.cpp: the CPU matmul from memory (one row) and its arithmetic (many rows).
#include <benchmark/benchmark.h>

#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"

namespace zmlx::cpu {
namespace {

constexpr size_t far = 256u << 20; // bytes of weights that no cache holds

/// bf16 or float32 words that are small ordinary numbers.
std::vector<std::byte> numbers(Dtype dtype, int64_t n) {
  std::vector<std::byte> out(static_cast<size_t>(n) * size_of(dtype));
  for (size_t i = 0; i < out.size(); i += size_of(dtype)) {
    const float value = 0.01f * static_cast<float>(i % 97);
    uint32_t bits = 0;
    std::memcpy(&bits, &value, 4);
    bits = dtype == Dtype::f32 ? bits : dtype == Dtype::bf16 ? bits >> 16 : 0x2c00u;
    std::memcpy(&out[i], &bits, size_of(dtype));
  }
  return out;
}

struct Matrix {
  std::vector<std::byte> codes, scales, biases;
};

const Matrix& matrix(Dtype dtype, WeightFormat f, int64_t n, int64_t k) {
  static std::map<std::tuple<Dtype, int, int, int64_t, int64_t>, Matrix> made;
  auto& m = made[{dtype, f.bits, f.group_size, n, k}];
  if (m.codes.empty()) {
    if (f.bits) {
      m.codes.resize(static_cast<size_t>(n * k * f.bits / 8));
      for (size_t i = 0; i < m.codes.size(); ++i) {
        m.codes[i] = static_cast<std::byte>(i * 2654435761u >> 13);
      }
      m.scales = numbers(dtype, n * k / f.group_size);
      m.biases = m.scales;
    } else {
      m.codes = numbers(dtype, n * k);
    }
  }
  return m;
}

/// Rows x threads of one format; n = 0: as many outputs as make the weight `far` bytes.
void matmul(benchmark::State& state, Dtype dtype, WeightFormat f, int64_t n, int64_t k) {
  const int64_t rows = state.range(0);
  Team team(static_cast<int>(state.range(1)));
  const MatmulShape shape{dtype, f, k};
  if (n == 0) {
    n = static_cast<int64_t>(far) / shape.row_bytes() / 32 * 32;
  }
  const Matrix& m = matrix(dtype, f, n, k);
  const Weight weight{m.codes.data(), m.scales.data(), m.biases.data()};
  Matmul product(dtype, f, k);
  const auto x = numbers(dtype, rows * k);
  std::vector<std::byte> scratch(prepare_scratch(product, rows) + 64);
  auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63};
  std::vector<float> out(static_cast<size_t>(n));
  for (auto _ : state) {
    team.run([&](Member& member) {
      LocalRows local;
      auto prepared = prepare_rows(
          product, x.data(), rows, {}, reinterpret_cast<std::byte*>(address), local, member);
      for_blocks(
          product, weight, n, prepared, member, [&](Range j, int64_t, int64_t, float* y, int64_t) {
            out[static_cast<size_t>(j.begin)] = *y;
          });
    });
  }
  const auto bytes = static_cast<double>(m.codes.size() + m.scales.size() + m.biases.size());
  const auto runs = static_cast<double>(state.iterations());
  state.counters["GB/s"] = benchmark::Counter(runs * bytes / 1e9, benchmark::Counter::kIsRate);
  state.counters["GFLOP/s"] = benchmark::Counter(
      runs * 2e-9 * static_cast<double>(rows * n * k), benchmark::Counter::kIsRate);
}

void from_memory(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (int threads : {1, 2}) {
    for (int rows : {1, 2, 4, 8}) {
      b->Args({rows, threads});
    }
  }
}

void prompt(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (int threads : {1, 2}) {
    for (int rows : {16, 64, 512}) {
      b->Args({rows, threads});
    }
  }
}

BENCHMARK_CAPTURE(matmul, bf16_4bit_g64_k2048, Dtype::bf16, (WeightFormat{4, 64}), 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_4bit_g64_k1024, Dtype::bf16, (WeightFormat{4, 64}), 0, 1024)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_4bit_g64_k768, Dtype::bf16, (WeightFormat{4, 64}), 0, 768)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_4bit_g32_k2048, Dtype::bf16, (WeightFormat{4, 32}), 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_8bit_g64_k2048, Dtype::bf16, (WeightFormat{8, 64}), 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_dense_k2048, Dtype::bf16, WeightFormat{}, 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, f32_4bit_g64_k2048, Dtype::f32, (WeightFormat{4, 64}), 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, f16_4bit_g64_k2048, Dtype::f16, (WeightFormat{4, 64}), 0, 2048)
    ->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, f32_dense_k2048, Dtype::f32, WeightFormat{}, 0, 2048)->Apply(from_memory);
BENCHMARK_CAPTURE(matmul, bf16_4bit, Dtype::bf16, (WeightFormat{4, 64}), 2048, 2048)->Apply(prompt);
BENCHMARK_CAPTURE(matmul, bf16_8bit, Dtype::bf16, (WeightFormat{8, 64}), 2048, 2048)->Apply(prompt);
BENCHMARK_CAPTURE(matmul, bf16_dense, Dtype::bf16, WeightFormat{}, 2048, 2048)->Apply(prompt);
BENCHMARK_CAPTURE(matmul, f32_4bit, Dtype::f32, (WeightFormat{4, 64}), 2048, 2048)->Apply(prompt);

} // namespace
} // namespace zmlx::cpu

BENCHMARK_MAIN();
