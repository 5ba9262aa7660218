// zmlx/kernel/cuda/gemm_codes.cuh: weights' codes, decoded in runs of 32 elements of one row.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

inline constexpr int affine_codes = 0;
inline constexpr int mxfp4_codes = 1;
inline constexpr int mxfp8_codes = 2;
inline constexpr int nvfp4_codes = 3;

/// Twice the number whose unit in the last place is 1, and twice 1.
template <typename T>
struct CodeBase;
template <>
struct CodeBase<bf16> {
  static constexpr uint32_t pair = 0x43004300u;
  static constexpr uint32_t ones = 0x3F803F80u;
};
template <>
struct CodeBase<f16> {
  static constexpr uint32_t pair = 0x64006400u;
  static constexpr uint32_t ones = 0x3C003C00u;
};

/// Elements of T as they are.
template <typename T>
struct DenseRuns {
  static constexpr bool dense = true;
  static constexpr bool biases = false;

  ZMLX_DEVICE static float element(const void* codes, const void*, const void*, int64_t row, int i, int k) {
    return to_float(static_cast<const T*>(codes)[row * k + i]);
  }
};

/// Codes of `bits` bits with a scale for each `group` of a row.
template <typename T, int bits_, int group_, int mode_>
struct CodeRuns {
  static constexpr bool dense = false;
  static constexpr bool biases = mode_ == affine_codes;
  static constexpr int bits = bits_;
  static constexpr int group = group_;
  static constexpr int mode = mode_;
  static constexpr int words = bits; // of one run
  static constexpr int scales = group < 32 ? 2 : 1; // of one run
  static constexpr bool pairwise = mode == affine_codes && bits == 4 && sizeof(T) == 2;

  uint32_t code[words];
  uint16_t scale[scales]; // as stored
  uint16_t bias;

  ZMLX_DEVICE static float scale_at(const void* p, int64_t i) {
    if constexpr (mode == affine_codes) {
      return to_float(static_cast<const T*>(p)[i]);
    } else {
      return scale_of(static_cast<const uint8_t*>(p)[i]);
    }
  }

  ZMLX_DEVICE static float scale_of(uint32_t stored) {
    if constexpr (mode == affine_codes) {
      return to_float(T{static_cast<uint16_t>(stored)});
    } else if constexpr (mode == nvfp4_codes) {
      return from_e4m3(stored);
    } else {
      return bits_to_float(stored ? stored << 23 : 0x00400000u);
    }
  }

  ZMLX_DEVICE static float from_e4m3(uint32_t c) {
    const float size = bits_to_float((c & 127u) << 20) * 0x1p120f;
    const float value = (c & 127u) == 127u ? bits_to_float(0x7FC00000u) : size;
    return c & 128u ? -value : value;
  }

  ZMLX_DEVICE static float value_of(uint32_t c) {
    if constexpr (mode == affine_codes) {
      return bits_to_float(0x4B000000u | c) - 0x1p23f; // cheaper than a conversion
    } else if constexpr (bits == 8) {
      return from_e4m3(c);
    } else {
      return bits_to_float((c & 8u) << 28 | (c & 7u) << 22) * 0x1p126f;
    }
  }

  /// Code i of those that begin at `p`.
  ZMLX_DEVICE static uint32_t code_at(const uint32_t* p, int i) {
    const int at = i * bits;
    uint32_t v = p[at / 32] >> (at % 32);
    if (at % 32 + bits > 32) {
      v |= p[at / 32 + 1] << (32 - at % 32);
    }
    return v & ((1u << bits) - 1u);
  }

  ZMLX_DEVICE static float
  element(const void* codes, const void* scale, const void* bias, int64_t row, int i, int k) {
    const auto* begin = static_cast<const uint32_t*>(codes) + row * (k * bits / 32);
    const int64_t at = row * (k / group) + i / group;
    float y = value_of(code_at(begin, i)) * scale_at(scale, at);
    if constexpr (biases) {
      y += to_float(static_cast<const T*>(bias)[at]);
    }
    return y;
  }

  /// Run `run` of weight row `row`, or zeros.
  ZMLX_DEVICE void load(const void* codes, const void* scale_p, const void* bias_p, int64_t row, int run, int k, bool valid) {
    const auto* from = static_cast<const uint32_t*>(codes) + (row * (k / 32) + run) * words;
    const int64_t at = row * (k / group) + static_cast<int64_t>(run) * 32 / group;
#pragma unroll
    for (int i = 0; i < words; ++i) {
      code[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < scales; ++i) {
      scale[i] = 0;
    }
    bias = 0;
    if (!valid) {
      return;
    }
    if constexpr (words % 4 == 0) {
#pragma unroll
      for (int i = 0; i < words; i += 4) {
        const uint4 v = load_once16(from + i);
        code[i] = v.x;
        code[i + 1] = v.y;
        code[i + 2] = v.z;
        code[i + 3] = v.w;
      }
    } else if constexpr (words % 2 == 0) {
#pragma unroll
      for (int i = 0; i < words; i += 2) {
        const uint2 v = load_once8(from + i);
        code[i] = v.x;
        code[i + 1] = v.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < words; ++i) {
        code[i] = load_once4(from + i);
      }
    }
    if constexpr (sizeof(T) == 2 && mode == affine_codes) {
      scale[0] = static_cast<const uint16_t*>(scale_p)[at];
      bias = static_cast<const uint16_t*>(bias_p)[at];
    } else if constexpr (mode != affine_codes) {
#pragma unroll
      for (int i = 0; i < scales; ++i) {
        scale[i] = static_cast<const uint8_t*>(scale_p)[at + i];
      }
    }
  }

  /// Elements 8q .. 8q + 7 of the run, each rounded once.
  ZMLX_DEVICE uint4 decode(int q) const {
    uint32_t y[4];
    if constexpr (pairwise) {
      // A code in the low bits of 128 (bf16) or 1024 (f16) adds its value, and the number is subtracted again: exact.
      constexpr uint32_t magic = CodeBase<T>::pair;
      const uint32_t s = scale[0] | static_cast<uint32_t>(scale[0]) << 16;
      const uint32_t b = bias | static_cast<uint32_t>(bias) << 16;
      const uint32_t even = code[q];
      const uint32_t odd = even >> 4;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t pair = and_or<0x000F000Fu, magic>(
            select_bytes(even, odd, 0x0400u + 0x0101u * static_cast<uint32_t>(j)));
        y[j] = fma2<T>(fma2<T>(pair, CodeBase<T>::ones, magic | 0x80008000u), s, b);
      }
    } else {
      float v[8];
      const float b = biases ? to_float(T{bias}) : 0.0f;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = 8 * q + i;
        const float s = scale_of(scale[scales == 2 ? at / 16 : 0]);
        const int bit = at * bits;
        uint32_t c = code[bit / 32] >> (bit % 32);
        if (bit % 32 + bits > 32) {
          c |= code[bit / 32 + 1 < words ? bit / 32 + 1 : 0] << (32 - bit % 32);
        }
        const float value = value_of(c & ((1u << bits) - 1u)) * s;
        v[i] = biases ? value + b : value;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        y[j] = pack2<T>(v[2 * j], v[2 * j + 1]);
      }
    }
    return {y[0], y[1], y[2], y[3]};
  }
};
