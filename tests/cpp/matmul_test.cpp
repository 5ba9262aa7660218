// tests/cpp/matmul_test.cpp: the CPU matmul on each instruction set against double precision from
// decoded weights.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"

namespace zmlx::cpu {
namespace {

float value_of(Dtype dtype, const std::byte* at) {
  uint32_t bits = 0;
  std::memcpy(&bits, at, size_of(dtype));
  if (dtype == Dtype::f32) {
    return std::bit_cast<float>(bits);
  }
  if (dtype == Dtype::bf16) {
    return std::bit_cast<float>(bits << 16);
  }
  const float magnitude = (bits & 0x7c00) == 0x7c00
      ? std::bit_cast<float>(0x7f800000 | ((bits & 0x3ff) << 13))
      : std::ldexp(
            static_cast<float>((bits & 0x3ff) | (bits & 0x7c00 ? 0x400 : 0)),
            std::max(1, static_cast<int>(bits >> 10 & 31)) - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/// Rounded down in magnitude: the tests need representable values, not good rounding.
void put(Dtype dtype, float x, std::byte* at) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if (dtype == Dtype::bf16) {
    bits >>= 16;
  } else if (dtype == Dtype::f16) {
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    bits = magnitude >= 0x7f800000 ? 0x7c00 | (magnitude > 0x7f800000 ? 0x200 : 0)
        : magnitude < 0x38800000   ? 0
                                   : (magnitude - 0x38000000) >> 13;
    bits |= sign;
  }
  std::memcpy(at, &bits, size_of(dtype));
}

/// A matmul's operands, and what it should give.
struct Problem {
  Dtype dtype;
  WeightFormat format;
  int64_t n, k, m;
  std::vector<std::byte> codes, scales, biases, x;
  std::vector<double> want, size; // size: the sum of magnitudes, to which rounding is relative
  std::vector<double> blunt; // the same with each group's activations as large as its largest

  Problem(Dtype dtype, WeightFormat format, int64_t n, int64_t k, int64_t m)
      : dtype(dtype), format(format), n(n), k(k), m(m) {
    std::mt19937 random(static_cast<uint32_t>(n * 1000003 + k * 101 + m * 7 + format.bits));
    std::uniform_real_distribution<float> unit(-1, 1);
    const size_t bytes = size_of(dtype);
    auto fill = [&](std::vector<std::byte>& to, int64_t count, float scale) {
      to.resize(static_cast<size_t>(count) * bytes);
      for (size_t i = 0; i < to.size(); i += bytes) {
        put(dtype, unit(random) * scale, &to[i]);
      }
    };
    fill(x, m * k, 2);
    if (format.bits) {
      codes.resize(static_cast<size_t>(n * k * format.bits / 8));
      for (auto& code : codes) {
        code = static_cast<std::byte>(random());
        if (format.mode == Quantisation::mxfp8 && (code & std::byte{127}) == std::byte{127}) {
          code ^= std::byte{1}; // not NaN
        }
      }
      if (format.mode == Quantisation::affine) {
        fill(scales, n * k / format.group_size, 0.1f);
        fill(biases, n * k / format.group_size, 1);
      } else {
        scales.resize(static_cast<size_t>(n * k / format.group_size));
        for (auto& scale : scales) { // 2^-10 to 2^5, or any e4m3 that is finite and positive
          scale = static_cast<std::byte>(
              format.mode == Quantisation::nvfp4 ? random() % 127 : 117 + random() % 16);
        }
      }
    } else {
      fill(codes, n * k, 1);
    }
    compute();
  }

  /// A short float with its exponent above `mantissa` bits; codes of the largest normal 448 end at
  /// NaN.
  static double minifloat(size_t code, int bits, int mantissa, int bias) {
    const auto magnitude = static_cast<int>(code & ((size_t{1} << (bits - 1)) - 1));
    const int exponent = magnitude >> mantissa;
    const double fraction = std::ldexp(magnitude & ((1 << mantissa) - 1), -mantissa);
    const double size =
        exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias);
    return code >> (bits - 1) & 1 ? -size : size;
  }

  double scale(size_t group) const {
    const auto byte = static_cast<size_t>(scales[group]);
    return format.mode == Quantisation::nvfp4 ? minifloat(byte, 8, 3, 7)
                                              : std::ldexp(1, static_cast<int>(byte) - 127);
  }

  double weight(int64_t row, int64_t at) const {
    const auto i = static_cast<size_t>(row * k + at);
    if (!format.bits) {
      return value_of(dtype, &codes[i * size_of(dtype)]);
    }
    const auto bits = static_cast<size_t>(format.bits);
    size_t code = 0;
    for (size_t b = 0; b < bits; ++b) {
      const size_t bit = i * bits + b;
      code |= (static_cast<size_t>(codes[bit / 8]) >> (bit % 8) & 1) << b;
    }
    if (format.mode != Quantisation::affine) {
      const double value = bits == 4 ? minifloat(code, 4, 1, 1) : minifloat(code, 8, 3, 7);
      return value * scale(i / static_cast<size_t>(format.group_size));
    }
    const size_t group = i / static_cast<size_t>(format.group_size) * size_of(dtype);
    return static_cast<double>(code) * value_of(dtype, &scales[group]) +
        value_of(dtype, &biases[group]);
  }

  double input(int64_t row, int64_t at) const {
    return value_of(dtype, &x[static_cast<size_t>(row * k + at) * size_of(dtype)]);
  }

  void compute() {
    want.assign(static_cast<size_t>(m * n), 0);
    size.assign(static_cast<size_t>(m * n), 0);
    blunt.assign(static_cast<size_t>(m * n), 0);
    std::vector<double> row(static_cast<size_t>(k));
    const int64_t group = format.bits ? format.group_size : k;
    std::vector<double> largest(static_cast<size_t>(m * k), 0);
    for (int64_t r = 0; r < m; ++r) {
      for (int64_t begin = 0; begin < k; begin += group) {
        double most = 0;
        for (int64_t i = begin; i < begin + group; ++i) {
          most = std::max(most, std::abs(input(r, i)));
        }
        std::fill_n(largest.begin() + r * k + begin, group, most);
      }
    }
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < k; ++i) {
        row[static_cast<size_t>(i)] = weight(j, i);
      }
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t i = 0; i < k; ++i) {
          const double term = row[static_cast<size_t>(i)] * input(r, i);
          want[static_cast<size_t>(r * n + j)] += term;
          size[static_cast<size_t>(r * n + j)] += std::abs(term);
          blunt[static_cast<size_t>(r * n + j)] +=
              std::abs(row[static_cast<size_t>(i)]) * largest[static_cast<size_t>(r * k + i)];
        }
      }
    }
  }

  Weight weights() const {
    return {codes.data(), scales.data(), biases.data()};
  }

  /// Computes outputs [begin, n) with the given kernels; element (i, j) at i * n + j.
  std::vector<float>
  run(const MatmulKernels& kernels, int64_t begin = 0, const uint32_t* index = nullptr) const {
    const MatmulShape shape{dtype, format, k};
    const size_t bytes = kernels.prepared_bytes(shape);
    EXPECT_EQ(bytes % 64, 0u);
    std::vector<std::byte> memory(bytes * static_cast<size_t>(m) + 64, std::byte{0xff});
    auto address = (reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63};
    auto* prepared = reinterpret_cast<std::byte*>(address);
    for (int64_t i = 0; i < m; ++i) {
      const auto at = static_cast<size_t>(i);
      const auto from = at * static_cast<size_t>(k) * size_of(dtype);
      kernels.prepare(shape, x.data() + from, prepared + at * bytes);
    }
    std::vector<float> out(static_cast<size_t>(m * n), std::numeric_limits<float>::quiet_NaN());
    if (m && n) {
      kernels.run(shape, weights(), {begin, n}, {prepared, m, index}, bytes, out.data() + begin, n);
    }
    return out;
  }
};

std::vector<const MatmulKernels*> kernels_for(const Problem& p) {
  auto list = portable_matmuls();
  if (bf16_matmul() && p.dtype == Dtype::bf16) {
    list.push_back(bf16_matmul());
  }
  if (auto* int16 = int16_matmul({p.dtype, p.format, p.k})) {
    list.push_back(int16);
  }
  return list;
}

/// What an output may be off by. Integers of 16 bits may round an activation by 2^-15 of its
/// group's largest.
double bound(const Problem& p, const MatmulKernels& kernels, size_t i) {
  const double rounding =
      kernels.name == std::string("AVX2_INT16") ? std::ldexp(p.blunt[i], -15) : 0;
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

constexpr Dtype dtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
constexpr int64_t row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 33};
constexpr WeightFormat float_formats[] = {
    {4, 32, Quantisation::mxfp4},
    {8, 32, Quantisation::mxfp8},
    {4, 16, Quantisation::nvfp4}};

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
    for (int64_t m : {2, 9}) {
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
        for (int64_t m : {1, 2, 7}) {
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
