// tests/cpp/matmul_testing.h: random operands of a CPU matmul, and what it should give, in double
// precision from decoded weights.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "zmlx/kernel/cpu/matmul.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"

namespace zmlx::cpu {

inline float value_of(Dtype dtype, const std::byte* at) {
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
inline void put(Dtype dtype, float x, std::byte* at) {
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

  Activations activations;

  Problem(
      Dtype dtype,
      WeightFormat format,
      int64_t n,
      int64_t k,
      int64_t m,
      Activations activations = Activations::exact)
      : dtype(dtype), format(format), n(n), k(k), m(m), activations(activations) {
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

  /// A row as the weights meet it: as it is, or each group as integers up to 127 times a scale.
  std::vector<double> seen(int64_t row) const {
    std::vector<double> values(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
      values[static_cast<size_t>(i)] = input(row, i);
    }
    for (int64_t g = 0; activations == Activations::int8 && g < k; g += format.group_size) {
      const auto from = values.begin() + g;
      float largest = 0;
      for (auto v = from; v < from + format.group_size; ++v) {
        largest = std::max(largest, std::abs(static_cast<float>(*v)));
      }
      for (auto v = from; v < from + format.group_size; ++v) {
        const float whole = std::nearbyint(static_cast<float>(*v) * (127 / largest));
        *v = largest < 1e-30f ? 0 : static_cast<double>(whole) * (largest / 127);
      }
    }
    return values;
  }

  void compute() {
    want.assign(static_cast<size_t>(m * n), 0);
    size.assign(static_cast<size_t>(m * n), 0);
    blunt.assign(static_cast<size_t>(m * n), 0);
    std::vector<double> row(static_cast<size_t>(k));
    std::vector<std::vector<double>> rows;
    for (int64_t r = 0; r < m; ++r) {
      rows.push_back(seen(r));
    }
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
          const double term =
              row[static_cast<size_t>(i)] * rows[static_cast<size_t>(r)][static_cast<size_t>(i)];
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

inline constexpr Dtype dtypes[] = {Dtype::f32, Dtype::f16, Dtype::bf16};
inline constexpr int64_t row_counts[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 17, 33};
inline constexpr WeightFormat float_formats[] = {
    {4, 32, Quantisation::mxfp4},
    {8, 32, Quantisation::mxfp8},
    {4, 16, Quantisation::nvfp4}};

} // namespace zmlx::cpu
