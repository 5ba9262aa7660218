// tests/cpp/matmul_int8_test.cpp: the CPU matmul with activations of 8 bits against the same
// rounding in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "matmul_testing.h"
#include "zmlx/kernel/cpu/int8.h"

namespace zmlx::cpu {
namespace {

std::vector<const MatmulKernels*> all_kernels(const Problem& p) {
  std::vector<const MatmulKernels*> list{portable_int8_matmul()};
  for (auto* kernels :
       {vnni_int8_matmul(),
        amx_int8_matmul(),
        int16_matmul({p.dtype, p.format, p.k}, Activations::int8)}) {
    if (kernels) {
      list.push_back(kernels);
    }
  }
  return list;
}

std::vector<WeightFormat> all_formats() {
  std::vector<WeightFormat> list{float_formats[0], float_formats[2]};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      list.push_back({bits, group});
    }
  }
  return list;
}

Problem problem(Dtype dtype, WeightFormat format, int64_t n, int64_t k, int64_t m) {
  return {dtype, format, n, k, m, Activations::int8};
}

void expect_right(const Problem& p, double tolerance = 2e-6) {
  for (auto* kernels : all_kernels(p)) {
    const auto got = p.run(*kernels);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(got[i] - p.want[i]) / (tolerance * p.size[i] + 1e-36);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    EXPECT_LE(worst, 1) << kernels->name << ' ' << name_of(p.dtype) << " bits " << p.format.bits
                        << " mode " << static_cast<int>(p.format.mode) << " group "
                        << p.format.group_size << " [" << p.m << ", " << p.k << "] x [" << p.n
                        << ", " << p.k << "]";
  }
}

TEST(MatmulInt8, IsRightForEveryFormatAndNumberOfRows) {
  for (auto dtype : dtypes) {
    for (auto format : all_formats()) {
      for (int64_t m : row_counts) {
        expect_right(problem(dtype, format, 37, format.group_size * 5, m));
      }
      expect_right(problem(dtype, format, 3, format.group_size, 1));
      expect_right(problem(dtype, format, 17, format.group_size, 16));
    }
  }
}

TEST(MatmulInt8, IsRightForAnyNumberOfOutputsAndManyGroups) {
  for (auto format : {WeightFormat{4, 32}, WeightFormat{8, 64}, WeightFormat{6, 128}}) {
    for (int64_t n : {0, 1, 2, 3, 4, 5, 31, 32, 33, 65}) {
      for (int64_t m : {1, 2, 5, 32}) {
        expect_right(problem(Dtype::bf16, format, n, format.group_size * 17, m));
      }
    }
  }
  // Longer than a panel.
  for (auto format : all_formats()) {
    const int64_t k = 4096 + format.group_size;
    for (int64_t m : {1, 12, 21}) {
      expect_right(problem(Dtype::bf16, format, 34, k, m));
    }
  }
}

TEST(MatmulInt8, GivesAnOutputTheSameBitsWhereverTheBlockBegins) {
  for (int64_t m : {1, 2, 3, 4, 8}) {
    for (auto format : all_formats()) {
      const Problem p = problem(Dtype::bf16, format, 43, 640, m);
      for (auto* kernels : all_kernels(p)) {
        const auto whole = p.run(*kernels);
        for (int64_t begin : {1, 17, 42}) {
          const auto part = p.run(*kernels, begin);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = begin; j < p.n; ++j) {
              const auto at = static_cast<size_t>(i * p.n + j);
              ASSERT_EQ(part[at], whole[at]) << kernels->name << " rows " << m << " from " << begin;
            }
          }
        }
      }
    }
  }
}

TEST(MatmulInt8, FollowsAnIndexOfRows) {
  for (int64_t m : {2, 9, 35}) {
    const Problem p = problem(Dtype::bf16, {4, 64}, 21, 192, m);
    std::vector<uint32_t> reversed;
    for (int64_t i = m; i-- > 0;) {
      reversed.push_back(static_cast<uint32_t>(i));
    }
    for (auto* kernels : all_kernels(p)) {
      const auto straight = p.run(*kernels);
      const auto turned = p.run(*kernels, 0, reversed.data());
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < p.n; ++j) {
          EXPECT_NEAR(
              turned[static_cast<size_t>((m - 1 - i) * p.n + j)],
              straight[static_cast<size_t>(i * p.n + j)],
              1e-3)
              << kernels->name;
        }
      }
    }
  }
}

/// A problem whose element 77 of the last row is `value`.
Problem with_value(WeightFormat format, int64_t m, float value) {
  Problem p = problem(Dtype::f32, format, 9, 160, m);
  put(p.dtype, value, &p.x[static_cast<size_t>((m - 1) * p.k + 77) * sizeof(float)]);
  return p;
}

TEST(MatmulInt8, MakesARowWithNanOrInfinityNan) {
  for (auto format :
       {WeightFormat{3, 32}, WeightFormat{4, 32}, float_formats[0], float_formats[2]}) {
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), -NAN, INFINITY, -INFINITY}) {
      for (int64_t m : {1, 2, 7, 19}) {
        const Problem p = with_value(format, m, bad);
        for (auto* kernels : all_kernels(p)) {
          const auto got = p.run(*kernels);
          for (int64_t i = 0; i < m; ++i) {
            for (int64_t j = 0; j < p.n; ++j) {
              const float value = got[static_cast<size_t>(i * p.n + j)];
              EXPECT_EQ(std::isnan(value), i == m - 1) << kernels->name << " rows " << m;
            }
          }
        }
      }
    }
  }
}

TEST(MatmulInt8, TakesZerosAndTheSmallestAndLargestNumbers) {
  for (auto format : {WeightFormat{4, 32}, float_formats[0]}) {
    for (int64_t m : {1, 13}) {
      for (float scale : {0.0f, 1e-38f, 1e-31f, 2e-30f, 1e30f}) {
        Problem p = problem(Dtype::f32, format, 9, 96, m);
        for (size_t i = 0; i < p.x.size(); i += sizeof(float)) {
          put(p.dtype, value_of(p.dtype, &p.x[i]) * scale, &p.x[i]);
        }
        p.compute();
        for (auto* kernels : all_kernels(p)) {
          const auto got = p.run(*kernels);
          for (size_t i = 0; i < got.size(); ++i) {
            EXPECT_NEAR(got[i], p.want[i], 2e-6 * p.size[i]) << kernels->name << " scale " << scale;
          }
        }
      }
    }
  }
}

TEST(MatmulInt8, KnowsTheLargestIntegersOfBothSides) {
  // Codes of all ones times activations that are all 127 or -127: the largest sums there are.
  for (auto format : all_formats()) {
    for (int64_t m : {1, 16}) {
      Problem p = problem(Dtype::f32, format, 16, 256, m);
      std::fill(p.codes.begin(), p.codes.end(), std::byte{0xff});
      for (size_t i = 0; i < p.x.size(); i += sizeof(float)) {
        put(p.dtype, i / sizeof(float) / static_cast<size_t>(p.k) % 2 ? -1.0f : 1.0f, &p.x[i]);
      }
      p.compute();
      // Codes and biases may cancel, and all roundings of float32 sums go one way.
      expect_right(p, 1e-5);
    }
  }
}

TEST(MatmulInt8, IsChosenByMatmulAndSaysWhichFormatsFit) {
  EXPECT_TRUE(fits_int8({4, 64}));
  EXPECT_TRUE(fits_int8({8, 128}));
  EXPECT_TRUE(fits_int8(float_formats[0]));
  EXPECT_TRUE(fits_int8(float_formats[2]));
  EXPECT_FALSE(fits_int8(float_formats[1]));
  EXPECT_FALSE(fits_int8({}));

  const Problem p = problem(Dtype::f32, {4, 64}, 8, 128, 1);
  for (auto activations : {Activations::exact, Activations::int8}) {
    const Matmul matmul(p.dtype, p.format, p.k, activations);
    std::vector<std::byte> memory(matmul.prepared_bytes() + 64);
    auto address = (reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63};
    auto* prepared = reinterpret_cast<std::byte*>(address);
    matmul.prepare(p.x.data(), prepared);
    std::vector<float> out(8);
    matmul.run(p.weights(), {0, 8}, {prepared, 1, nullptr}, out.data(), 8);
    double worst = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      worst = std::max(worst, std::abs(out[i] - p.want[i]) / p.size[i]);
    }
    // Rounded to 8 bits an activation is off by half a percent of its group's largest.
    EXPECT_EQ(worst < 2e-6, activations == Activations::int8) << worst;
  }
}

} // namespace
} // namespace zmlx::cpu
