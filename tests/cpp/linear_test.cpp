// tests/cpp/linear_test.cpp: the CPU matmul on each instruction set against double precision from
// decoded weights.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "op_testing.h"
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
      }
      fill(scales, n * k / format.group_size, 0.1f);
      fill(biases, n * k / format.group_size, 1);
    } else {
      fill(codes, n * k, 1);
    }
    compute();
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
    std::vector<double> row(static_cast<size_t>(k));
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < k; ++i) {
        row[static_cast<size_t>(i)] = weight(j, i);
      }
      for (int64_t r = 0; r < m; ++r) {
        for (int64_t i = 0; i < k; ++i) {
          const double term = row[static_cast<size_t>(i)] * input(r, i);
          want[static_cast<size_t>(r * n + j)] += term;
          size[static_cast<size_t>(r * n + j)] += std::abs(term);
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
  if (bf16_matmul() && bf16_matmul_supports({p.dtype, p.format, p.k})) {
    list.push_back(bf16_matmul());
  }
  return list;
}

void expect_right(const Problem& p) {
  for (auto* kernels : kernels_for(p)) {
    const auto got = p.run(*kernels);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(got[i] - p.want[i]) / std::max(p.size[i], 1e-30);
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
    EXPECT_LT(worst, 2e-6) << kernels->name << ' ' << name_of(p.dtype) << " bits " << p.format.bits
                           << " group " << p.format.group_size << " [" << p.m << ", " << p.k
                           << "] x [" << p.n << ", " << p.k << "]";
  }
}

constexpr Dtype dtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
constexpr int64_t row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 13, 33};

TEST(Matmul, IsRightForEveryFormatAndNumberOfRows) {
  for (auto dtype : dtypes) {
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      for (int group : {32, 64, 128}) {
        for (int64_t m : row_counts) {
          expect_right({dtype, {bits, group}, 37, group * 5, m});
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
      Problem p(dtype, {4, 64}, 43, 320, m);
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
            if (dtype == Dtype::f16 && kernels->name == std::string("SCALAR")) {
              continue; // Highway's float16 has no infinities without F16C.
            }
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

namespace zmlx {
namespace {

using testing::message_of;

Type f32(Shape shape) {
  return {Dtype::f32, shape};
}

/// Types of a weight of four bits in groups of 32.
Types quantised(int64_t n, int64_t k) {
  return {{Dtype::u32, {n, k / 8}}, f32({n, k / 32}), f32({n, k / 32})};
}

Types join(std::initializer_list<Types> parts) {
  Types all;
  for (auto& part : parts) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

Attrs dense(Attrs more = {}) {
  return more.set("mode", std::string("none")).set("activation", std::string("silu"));
}

Attrs affine(int64_t bits, int64_t group, Attrs more = {}) {
  return dense(more).set("mode", std::string("affine")).set("bits", bits).set("group_size", group);
}

struct Mistake {
  const char* op;
  Types in;
  Attrs attrs;
  const char* message;
};

const Attrs residual = {{"residual", int64_t{1}}};
const Attrs norm = {{"norm", int64_t{1}}};
const Type chosen = {Dtype::u32, {2, 2}};

const Mistake mistakes[] = {
    {"linear",
     {f32({1, 8}), f32({4, 8})},
     Attrs{{"mode", std::string("mxfp4")}},
     "[linear] mode must be affine or none but got mxfp4."},
    {"linear", {}, affine(7, 32), "[linear] bits must be 2, 3, 4, 5, 6 or 8 but got 7."},
    {"linear", {}, affine(4, 16), "[linear] group_size must be 32, 64 or 128 but got 16."},
    {"linear",
     {},
     dense({{"outputs", int64_t{0}}}),
     "[linear] outputs must be at least 1 but got 0."},
    {"linear",
     {},
     dense({{"outputs", int64_t{2}}, {"residual", int64_t{1}}}),
     "[linear] a residual needs outputs=1 but got outputs=2."},
    {"linear", {f32({1, 8})}, dense(), "[linear] expected 2 inputs but got 1."},
    {"linear",
     {{Dtype::i32, {1, 8}}, f32({4, 8})},
     dense(),
     "[linear] x must be float32, float16 or bfloat16 but got int32."},
    {"linear",
     {f32({}), f32({4, 8})},
     dense(),
     "[linear] x must have at least 1 axis but got a number."},
    {"linear",
     {f32({1, 8}), f32({4, 9})},
     dense(),
     "[linear] weight must have x's last axis, 8, for its own but is (4, 9)."},
    {"linear",
     {f32({1, 8}), f32({4, 8, 1})},
     dense(),
     "[linear] weight must have 2 axes but got float32(4, 8, 1)."},
    {"linear",
     {f32({1, 8}), {Dtype::f16, {4, 8}}},
     dense(),
     "[linear] weight must be float32 but got float16."},
    {"linear",
     {f32({1, 8}), f32({9}), f32({4, 8})},
     dense(norm),
     "[linear] norm_weight must have shape (8,) but got (9,)."},
    {"linear",
     {f32({1, 8}), f32({4, 8}), f32({1, 5})},
     dense(residual),
     "[linear] residual must have shape (1, 4) but got (1, 5)."},
    {"linear",
     {f32({1, 8}), f32({4, 8}), f32({5})},
     dense({{"bias", int64_t{1}}}),
     "[linear] bias must have shape (4,) but got (5,)."},
    {"linear",
     join({{f32({1, 64})}, {f32({4, 8}), f32({4, 2}), f32({4, 2})}}),
     affine(4, 32),
     "[linear] weight must be uint32 but got float32."},
    {"linear",
     {f32({1, 64}), {Dtype::u32, {4, 9}}, f32({4, 2}), f32({4, 2})},
     affine(4, 32),
     "[linear] weight must have shape (4, 8) but got (4, 9)."},
    {"linear",
     {f32({1, 64}), {Dtype::u32, {4, 8}}, f32({4, 2}), f32({4, 3})},
     affine(4, 32),
     "[linear] weight biases must have shape (4, 2) but got (4, 3)."},
    {"linear",
     {{Dtype::f16, {1, 64}}, {Dtype::u32, {4, 8}}, f32({4, 2}), f32({4, 2})},
     affine(4, 32),
     "[linear] weight scales must be float16 but got float32."},
    {"embedding",
     join({{f32({1})}, quantised(4, 64)}),
     affine(4, 32),
     "[embedding] tokens must be integers but got float32."},
    {"embedding",
     {{Dtype::i32, {1, 1, 1, 1, 1, 1, 1, 1}}, f32({4, 8})},
     dense(),
     "[embedding] tokens may have at most 7 axes but got (1, 1, 1, 1, 1, 1, 1, 1)."},
    {"mlp",
     {},
     dense().set("activation", std::string("relu")),
     "[mlp] activation must be silu but got relu."},
    {"mlp",
     {f32({}), f32({4, 8}), f32({4, 8}), f32({8, 4})},
     dense(),
     "[mlp] x must have at least 1 axis but got a number."},
    {"mlp",
     {f32({1, 8}), f32({4, 8}), f32({5, 8}), f32({8, 4})},
     dense(),
     "[mlp] gate and up must be (F, 8) and down (D, F) but they are (4, 8), (5, 8) and (8, 4)."},
    {"mlp",
     {f32({1, 8}), f32({4, 8}), f32({4, 8}), f32({8, 4}), f32({1, 9})},
     dense(residual),
     "[mlp] residual must have shape (1, 8) but got (1, 9)."},
    {"moe_mlp",
     {},
     dense().set("activation", std::string("gelu")),
     "[moe_mlp] activation must be silu but got gelu."},
    {"moe_mlp",
     {f32({}), chosen, f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] x and indices must have at least 1 axis but got a number."},
    {"moe_mlp",
     {f32({2, 8}), f32({2, 2}), f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] indices must be uint32 but got float32."},
    {"moe_mlp",
     {f32({2, 8}), chosen, f32({2, 3}), f32({3, 4, 8}), f32({3, 4, 8}), f32({3, 8, 4})},
     dense(),
     "[moe_mlp] weights must have shape (2, 2) but got (2, 3)."},
    {"moe_mlp",
     {f32({2, 8}), chosen, f32({2, 2}), f32({3, 4, 8}), f32({3, 4, 8}), f32({2, 8, 4})},
     dense(),
     "[moe_mlp] gate and up must be (E, F, 8) and down (E, D, F) but they are (3, 4, 8), (3, 4, 8) "
     "and (2, 8, 4)."},
};

TEST(LinearOps, SayInWordsWhatDoesNotFit) {
  for (auto& mistake : mistakes) {
    auto& op = op_named(mistake.op);
    EXPECT_EQ(message_of([&] { op.types(mistake.in, mistake.attrs); }), mistake.message);
  }
}

TEST(LinearOps, SayWhichTokenOrExpertDoesNotExist) {
  Team team(2);
  auto table = mx::zeros({4, 8});
  for (int token : {4, -5}) {
    EXPECT_EQ(
        message_of([&] {
          testing::run_kernel(op_named("embedding"), {mx::array({0, token}), table}, dense(), team);
        }),
        "[embedding] tokens must be below the table's 4 rows but one is " + std::to_string(token) +
            ".");
  }
  for (int tokens : {1, 100}) { // few pairs and many are sorted apart
    auto experts = mx::full({tokens, 2}, 3, mx::uint32);
    Arrays in = {
        mx::zeros({tokens, 8}),
        experts,
        mx::zeros({tokens, 2}),
        mx::zeros({3, 4, 8}),
        mx::zeros({3, 4, 8}),
        mx::zeros({3, 8, 4})};
    EXPECT_EQ(
        message_of([&] { testing::run_kernel(op_named("moe_mlp"), in, dense(), team); }),
        "[moe_mlp] indices must be below 3 experts but one is 3.");
  }
}

TEST(LinearOps, CountNegativeTokensFromTheLastRow) {
  auto table = mx::reshape(mx::arange(12, mx::float32), {4, 3});
  auto rows = node(op_named("embedding"), {mx::array({-1, 0}), table}, dense())[0];
  EXPECT_TRUE(mx::array_equal(rows, mx::take(table, mx::array({3, 0}), 0)).item<bool>());
}

} // namespace
} // namespace zmlx
