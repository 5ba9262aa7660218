// tests/cpp/matmul_test.cpp: the CPU matmul on each instruction set against double precision from
// decoded weights.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include "matmul_testing.h"

namespace zmlx::cpu {
namespace {

std::vector<const MatmulKernels*> kernels_for(const Problem& p) {
  auto list = portable_matmuls();
  if (bf16_matmul() && p.dtype == Dtype::bf16) {
    list.push_back(bf16_matmul());
  }
  if (amx_bf16_matmul() && p.dtype == Dtype::bf16) {
    list.push_back(amx_bf16_matmul());
  }
  if (auto* int16 = int16_matmul({p.dtype, p.format, p.k})) {
    list.push_back(int16);
  }
  if (auto* int16 = vnni_int16_matmul({p.dtype, p.format, p.k})) {
    list.push_back(int16);
  }
  return list;
}

/// What an output may be off by. Integers of 16 bits may round an activation by 2^-15 of its
/// group's largest.
double bound(const Problem& p, const MatmulKernels& kernels, size_t i) {
  const double rounding =
      std::string_view(kernels.name).ends_with("INT16") ? std::ldexp(p.blunt[i], -15) : 0;
  return 2e-6 * p.size[i] + rounding + 1e-36;
}

void expect_right(const Problem& p) {
  for (auto* kernels : kernels_for(p)) {
    const auto got = p.run(*kernels);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(got[i] - p.want[i]) / bound(p, *kernels, i);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    EXPECT_LE(worst, 1) << kernels->name << ' ' << name_of(p.dtype) << " bits " << p.format.bits
                        << " mode " << static_cast<int>(p.format.mode) << " group "
                        << p.format.group_size << " [" << p.m << ", " << p.k << "] x [" << p.n
                        << ", " << p.k << "]";
  }
}

TEST(Matmul, IsRightForEveryFormatAndNumberOfRows) {
  for (auto dtype : dtypes) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (int group : {32, 64, 128}) {
        for (int64_t m : row_counts) {
          expect_right({dtype, {bits, group}, 37, group * 5, m});
        }
        expect_right({dtype, {bits, group}, 3, group, 1}); // less than a vector
      }
    }
  }
}

TEST(Matmul, IsRightForShortFloats) {
  for (auto dtype : dtypes) {
    for (auto format : float_formats) {
      for (int64_t m : row_counts) {
        expect_right({dtype, format, 37, 160, m});
        expect_right({dtype, format, 5, 32 * 67, m});
      }
    }
  }
}

TEST(Matmul, KnowsEveryCodeOfFp8AndFp4) {
  // The identity as activations brings out the weights themselves.
  for (auto dtype : dtypes) {
    for (auto format : float_formats) {
      Problem p(dtype, format, 8, 32, 32);
      for (int64_t i = 0; i < p.m; ++i) {
        for (int64_t j = 0; j < p.k; ++j) {
          put(dtype, i == j, &p.x[static_cast<size_t>(i * p.k + j) * size_of(dtype)]);
        }
      }
      for (size_t i = 0; i < p.codes.size(); ++i) {
        p.codes[i] = static_cast<std::byte>(i);
      }
      for (auto& scale : p.scales) { // one
        scale = std::byte{format.mode == Quantisation::nvfp4 ? uint8_t{0x38} : uint8_t{127}};
      }
      for (auto* kernels : kernels_for(p)) {
        const auto got = p.run(*kernels);
        for (int64_t j = 0; j < p.n; ++j) {
          for (int64_t i = 0; i < p.m; ++i) {
            const float value = got[static_cast<size_t>(i * p.n + j)];
            // A NaN in a row spreads: NaN times nought.
            const bool spoilt = format.bits == 8 && (j == 3 || j == 7);
            if (spoilt) {
              EXPECT_TRUE(std::isnan(value)) << kernels->name << " code " << j * p.k + i;
            } else {
              EXPECT_EQ(value, p.weight(j, i)) << kernels->name << " code " << j * p.k + i;
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, TakesTheSmallestAndLargestScales) {
  for (auto dtype : dtypes) {
    for (auto format : float_formats) {
      for (int byte : {0, 1, 0x7e, 0xfe}) {
        if (format.mode == Quantisation::nvfp4 && byte == 0xfe) {
          byte = 0x88; // negative
        }
        Problem p(dtype, format, 3, 96, 2);
        for (auto& scale : p.scales) {
          scale = static_cast<std::byte>(byte);
        }
        for (auto& value : p.x) {
          value = std::byte{0};
        }
        const float one = byte == 0xfe ? 0.0078125f : 1;
        for (int64_t i = 0; i < p.m; ++i) {
          put(dtype, one, &p.x[static_cast<size_t>(i * p.k + 40) * size_of(dtype)]);
        }
        p.compute();
        for (auto* kernels : kernels_for(p)) {
          const auto got = p.run(*kernels);
          for (size_t i = 0; i < got.size(); ++i) {
            EXPECT_NEAR(got[i], p.want[i], 1e-6 * std::abs(p.want[i]))
                << kernels->name << " scale " << byte;
          }
        }
      }
    }
  }
}

TEST(Matmul, IsRightForDenseWeights) {
  for (auto dtype : dtypes) {
    for (int64_t k : {1, 31, 32, 33, 97, 512}) {
      for (int64_t m : row_counts) {
        expect_right({dtype, {}, 33, k, m});
      }
    }
  }
}

TEST(Matmul, IsRightForAnyNumberOfOutputsAndManyGroups) {
  for (auto dtype : dtypes) {
    for (int bits : {4, 8}) {
      for (int64_t n : {0, 1, 2, 3, 4, 5, 31, 32, 33, 65}) {
        for (int64_t m : {1, 2, 5}) {
          expect_right({dtype, {bits, 32}, n, 32 * 17, m});
        }
      }
      for (int64_t m : {1, 3, 12}) {
        expect_right({dtype, {bits, 64}, 34, 64 * 69, m});
      }
    }
  }
  expect_right({Dtype::bf16, {}, 40, 2500, 14});
  expect_right({Dtype::bf16, {4, 64}, 300, 640, 150});
  expect_right({Dtype::bf16, {8, 32}, 33, 32 * 360, 3}); // more groups than sums at once
  expect_right({Dtype::f32, {}, 9, 5000, 3});
}

TEST(Matmul, GivesAnOutputTheSameBitsWhereverTheBlockBegins) {
  for (auto dtype : dtypes) {
    for (int64_t m : {1, 2, 3, 4, 8}) {
      for (auto format : {WeightFormat{4, 64}, WeightFormat{5, 64}, float_formats[1]}) {
        Problem p(dtype, format, 43, 320, m);
        for (auto* kernels : kernels_for(p)) {
          const auto whole = p.run(*kernels);
          for (int64_t begin : {1, 3, 17, 42}) {
            const auto part = p.run(*kernels, begin);
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = begin; j < p.n; ++j) {
                ASSERT_EQ(
                    part[static_cast<size_t>(i * p.n + j)], whole[static_cast<size_t>(i * p.n + j)])
                    << kernels->name << " rows " << m << " from " << begin;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, FollowsAnIndexOfRows) {
  for (auto dtype : dtypes) {
    for (int64_t m : {2, 9, 300}) {
      Problem p(dtype, {8, 32}, 21, 96, m);
      std::vector<uint32_t> reversed;
      for (int64_t i = m; i-- > 0;) {
        reversed.push_back(static_cast<uint32_t>(i));
      }
      for (auto* kernels : kernels_for(p)) {
        const auto straight = p.run(*kernels);
        const auto turned = p.run(*kernels, 0, reversed.data());
        for (int64_t i = 0; i < m; ++i) {
          for (int64_t j = 0; j < p.n; ++j) {
            EXPECT_NEAR(
                turned[static_cast<size_t>((m - 1 - i) * p.n + j)],
                straight[static_cast<size_t>(i * p.n + j)],
                1e-3);
          }
        }
      }
    }
  }
}

TEST(Matmul, LetsNanAndInfinityThrough) {
  for (auto dtype : dtypes) {
    for (int bits : {0, 3, 4, 8}) {
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
        for (int64_t m : {1, 2, 7, 18}) {
          Problem p(dtype, {bits, bits ? 32 : 0}, 9, 160, m);
          put(dtype, bad, &p.x[static_cast<size_t>((m - 1) * p.k + 77) * size_of(dtype)]);
          for (auto* kernels : kernels_for(p)) {
            const auto got = p.run(*kernels);
            for (int64_t i = 0; i < m; ++i) {
              for (int64_t j = 0; j < p.n; ++j) {
                EXPECT_EQ(std::isfinite(got[static_cast<size_t>(i * p.n + j)]), i != m - 1)
                    << kernels->name << " bits " << bits << " rows " << m;
              }
            }
          }
        }
      }
    }
  }
}

TEST(Matmul, KeepsTheLargestActivations) {
  // Values of which an integer's high byte would be the first that is too large, and some near
  // infinity.
  for (auto dtype : dtypes) {
    const float last = dtype == Dtype::f16 ? 65504.0f : std::ldexp(1.9921875f, 112);
    for (float large : {1.984375f, 1.9921875f, 1.99609375f, -1.9921875f, last, -last}) {
      for (int bits : {4, 8}) {
        Problem p(dtype, {bits, 64}, 9, 192, 2);
        for (size_t i = 0; i < p.scales.size(); i += size_of(dtype)) { // sums stay finite
          put(dtype, std::ldexp(value_of(dtype, &p.scales[i]), -12), &p.scales[i]);
          put(dtype, std::ldexp(value_of(dtype, &p.biases[i]), -12), &p.biases[i]);
        }
        for (size_t i = 0; i < p.x.size(); i += 7 * size_of(dtype)) {
          put(dtype, large, &p.x[i]);
        }
        p.compute();
        expect_right(p);
      }
    }
  }
}

TEST(Matmul, TakesScalesPastBf16WithManyRows) {
  // One scale of a panel is so large or small that it cannot be multiplied into codes of bf16.
  for (auto format : {float_formats[0], float_formats[1]}) {
    for (int byte : {1, 5, 243, 246}) {
      Problem p(Dtype::bf16, format, 40, 640, 20);
      p.scales[23] = static_cast<std::byte>(byte);
      for (size_t i = 0; i < p.x.size(); i += 2) { // so small that sums stay finite
        put(p.dtype, std::ldexp(value_of(p.dtype, &p.x[i]), -30), &p.x[i]);
      }
      p.compute();
      for (auto* kernels : kernels_for(p)) {
        const auto got = p.run(*kernels);
        for (size_t i = 0; i < got.size(); ++i) {
          EXPECT_NEAR(got[i], p.want[i], bound(p, *kernels, i)) << kernels->name << ' ' << byte;
        }
      }
    }
  }
}

TEST(Matmul, UsesTilesOnEveryThreadAndGivesThemBack) {
  if (!amx_bf16_matmul()) {
    GTEST_SKIP() << "this CPU, build or system has no AMX";
  }
#ifdef __x86_64__
  const Problem p(Dtype::bf16, {4, 64}, 96, 512, 70);
  const auto want = p.run(*amx_bf16_matmul());
  Team team(3);
  team.run([&](Member&) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      EXPECT_EQ(p.run(*amx_bf16_matmul()), want);
    }
    uint32_t in_use = 0, rest = 0;
    asm volatile("xgetbv" : "=a"(in_use), "=d"(rest) : "c"(1));
    EXPECT_EQ(in_use >> 17 & 3, 0u) << "tiles are left configured";
  });
#endif
}

TEST(Matmul, TakesTilesForManyRowsOfBf16Alone) {
  if (!amx_bf16_matmul()) {
    GTEST_SKIP() << "this CPU, build or system has no AMX";
  }
  const auto rows_of_a_block = [&](Dtype dtype, int64_t rows) {
    return Matmul(dtype, {4, 64}, 512, Activations::exact, rows).block(512).rows;
  };
  EXPECT_GT(rows_of_a_block(Dtype::bf16, 512), rows_of_a_block(Dtype::bf16, 1));
  EXPECT_EQ(rows_of_a_block(Dtype::f32, 512), rows_of_a_block(Dtype::f32, 1));
}

TEST(Matmul, SaysWhichFormatsItHas) {
  EXPECT_TRUE(Matmul::supports(Dtype::bf16, {4, 64}, 128));
  EXPECT_TRUE(Matmul::supports(Dtype::f32, {}, 7));
  EXPECT_FALSE(Matmul::supports(Dtype::i32, {4, 64}, 128));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {7, 64}, 128));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {4, 16}, 128));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {4, 64}, 96));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {}, 0));
  EXPECT_TRUE(Matmul::supports(Dtype::f16, {4, 32, Quantisation::mxfp4}, 96));
  EXPECT_TRUE(Matmul::supports(Dtype::f32, {4, 16, Quantisation::nvfp4}, 48));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {8, 64, Quantisation::mxfp8}, 128));
  EXPECT_FALSE(Matmul::supports(Dtype::f32, {4, 16, Quantisation::nvfp4}, 40));
}

TEST(Matmul, PreparesRowsAloneOrTogetherAndKeepsTheNormalisedOnes) {
  for (int64_t rows : {1, 40}) {
    const int64_t k = 512;
    Matmul matmul(Dtype::f32, {}, k);
    std::vector<float> x(static_cast<size_t>(rows * k)), ones(static_cast<size_t>(k), 1.0f);
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = static_cast<float>(i % 17) - 8;
    }
    std::vector<float> kept(x.size());
    std::vector<std::byte> scratch(prepare_scratch(matmul, rows) + 64);
    auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63};
    for (int size : {1, 3}) {
      std::fill(kept.begin(), kept.end(), 0.0f);
      Team team(size);
      std::vector<float> out(static_cast<size_t>(rows));
      team.run([&](Member& member) {
        LocalRows local;
        Rows prepared = prepare_rows(
            matmul,
            x.data(),
            rows,
            {ones.data(), 1e-5f},
            reinterpret_cast<std::byte*>(address),
            local,
            member,
            kept.data());
        Range all{0, member.rank() == 0 ? 1 : 0};
        matmul.run({ones.data()}, all, prepared, out.data(), 1);
      });
      for (int64_t i = 0; i < rows; ++i) {
        double squares = 0, sum = 0;
        for (int64_t j = 0; j < k; ++j) {
          const double v = x[static_cast<size_t>(i * k + j)];
          squares += v * v;
          sum += v;
        }
        const double inverse = 1 / std::sqrt(squares / static_cast<double>(k) + 1e-5);
        EXPECT_NEAR(out[static_cast<size_t>(i)], sum * inverse, 1e-3);
        EXPECT_NEAR(
            kept[static_cast<size_t>(i * k + 5)],
            x[static_cast<size_t>(i * k + 5)] * inverse,
            1e-5);
      }
    }
  }
}

} // namespace
} // namespace zmlx::cpu
