// bench/linear_bench.cpp: the CPU matmul for each weight format, from memory (few rows) and in a
// cache (prompts), beside what the same team reads of plain memory.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
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
  using Key = std::tuple<Dtype, int, int, Quantisation, int64_t, int64_t>;
  // One at a time: all together would not fit a small machine.
  static std::pair<Key, Matrix> made;
  const Key key{dtype, f.bits, f.group_size, f.mode, n, k};
  Matrix& m = made.second;
  if (m.codes.empty() || made.first != key) {
    made = {key, {}};
    if (f.bits) {
      m.codes.resize(static_cast<size_t>(n * k * f.bits / 8));
      for (size_t i = 0; i < m.codes.size(); ++i) {
        m.codes[i] = static_cast<std::byte>(i * 2654435761u >> 13);
      }
      if (f.has_biases()) {
        m.scales = numbers(dtype, n * k / f.group_size);
        m.biases = m.scales;
      } else {
        m.scales.assign(static_cast<size_t>(n * k / f.group_size), std::byte{0x38});
      }
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
  Matmul product(dtype, f, k, Activations::exact, rows);
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

/// The sum of all words, in as many chains of additions as fill a core's loads.
uint64_t read_all(Team& team, const std::vector<std::byte>& memory) {
  constexpr int64_t chains = 32;
  constexpr int64_t ahead = 512; // words that are fetched before they are needed, as kernels do
  std::atomic<uint64_t> total{0};
  auto* words = reinterpret_cast<const uint64_t*>(memory.data());
  team.run([&](Member& member) {
    uint64_t sums[chains] = {};
    const Range mine = member.split(static_cast<int64_t>(memory.size() / 8), chains);
    for (int64_t i = mine.begin; i < mine.end; i += chains) {
      for (int64_t line = 0; line < chains; line += 8) {
        __builtin_prefetch(words + std::min(i + ahead + line, mine.end - 1), 0, 2);
      }
      for (int64_t j = 0; j < chains; ++j) {
        sums[j] += words[i + j];
      }
    }
    for (auto sum : sums) {
      total += sum;
    }
  });
  return total;
}

void read_memory(benchmark::State& state) {
  Team team(static_cast<int>(state.range(0)));
  const std::vector<std::byte> memory(far, std::byte{1});
  for (auto _ : state) {
    benchmark::DoNotOptimize(read_all(team, memory));
  }
  state.counters["GB/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * far / 1e9, benchmark::Counter::kIsRate);
}
BENCHMARK(read_memory)
    ->ArgName("threads")
    ->DenseRange(1, 2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

struct Named {
  const char* name;
  WeightFormat format;
};

constexpr Named formats[] = {
    {"affine_2bit_g64", {2, 64}},
    {"affine_3bit_g64", {3, 64}},
    {"affine_4bit_g64", {4, 64}},
    {"affine_4bit_g32", {4, 32}},
    {"affine_4bit_g128", {4, 128}},
    {"affine_5bit_g64", {5, 64}},
    {"affine_6bit_g64", {6, 64}},
    {"affine_8bit_g64", {8, 64}},
    {"mxfp4", {4, 32, Quantisation::mxfp4}},
    {"mxfp8", {8, 32, Quantisation::mxfp8}},
    {"nvfp4", {4, 16, Quantisation::nvfp4}},
    {"dense", {}}};

/// decode: n = 0 outputs, so that no cache holds them; prompt: a layer of 2048 by 2048.
const bool registered = [] {
  for (auto dtype : {Dtype::bf16, Dtype::f16, Dtype::f32}) {
    for (const Named& named : formats) {
      const std::string tail = std::string("/") + name_of(dtype) + '/' + named.name;
      auto add = [&](const char* kind, int64_t n, std::initializer_list<int64_t> rows) {
        auto* b = benchmark::RegisterBenchmark(
            (kind + tail).c_str(), [=, format = named.format](benchmark::State& state) {
              matmul(state, dtype, format, n, 2048);
            });
        b->ArgNames({"rows", "threads"})->UseRealTime()->Unit(benchmark::kMillisecond);
        for (int64_t threads : {1, 2}) {
          for (int64_t count : rows) {
            b->Args({count, threads});
          }
        }
      };
      add("decode", 0, {1, 2, 3, 4, 5, 6, 8, 12, 16});
      add("prompt", 2048, {64, 512});
    }
  }
  return true;
}();

} // namespace
} // namespace zmlx::cpu

BENCHMARK_MAIN();
