// zmlx/kernel/cuda/weights.cuh: weight formats as types, and their elements in registers. A row is a stream of codes from the
// lowest bit of little-endian words on; every `group` of them has a scale, and in affine formats a bias.
#pragma once

#include "zmlx/kernel/cuda/base.cuh"

/// element = code * scale + bias, scales and biases of the activations' type.
template <int bits_, int group_>
struct Affine {
  static constexpr int bits = bits_;
  static constexpr int group = group_;
  static constexpr int unit = 32; // codes that fill whole words
  static constexpr bool affine = true;
  static constexpr bool dense = false;
};

/// element = code * scale, codes and scales short floats: e2m1 or e4m3 codes, e8m0 or e4m3 scales.
struct Mxfp4 {
  static constexpr int bits = 4;
  static constexpr int group = 32;
  static constexpr int unit = 32;
  static constexpr bool affine = false;
  static constexpr bool dense = false;
};
struct Mxfp8 {
  static constexpr int bits = 8;
  static constexpr int group = 32;
  static constexpr int unit = 32;
  static constexpr bool affine = false;
  static constexpr bool dense = false;
};
struct Nvfp4 {
  static constexpr int bits = 4;
  static constexpr int group = 16;
  static constexpr int unit = 16;
  static constexpr bool affine = false;
  static constexpr bool dense = false;
};

/// Elements of the activations' type.
struct Dense {
  static constexpr int bits = 0;
  static constexpr int group = 0;
  static constexpr int unit = 1;
  static constexpr bool affine = false;
  static constexpr bool dense = true;
};

template <typename A, typename B>
inline constexpr bool same_type = false;
template <typename A>
inline constexpr bool same_type<A, A> = true;

/// Bits of one element in memory.
template <typename T, typename W>
inline constexpr int element_bits = W::dense ? static_cast<int>(sizeof(T)) * 8 : W::bits;
/// Bytes of one scale.
template <typename T, typename W>
inline constexpr int scale_bytes = W::affine ? static_cast<int>(sizeof(T)) : 1;

/// Code number i (a constant, once loops are unrolled) of words that begin with code 0.
template <typename W>
ZMLX_DEVICE uint32_t code_at(const uint32_t* words, int i) {
  const int word = i * W::bits / 32;
  const int shift = i * W::bits % 32;
  uint32_t code = words[word] >> shift;
  if (shift + W::bits > 32) {
    code |= words[word + 1] << (32 - shift);
  }
  return code & ((1u << W::bits) - 1);
}

/// A short float with `mantissa` bits at the bottom and its smallest normal number at 2^lowest; without sign.
template <int mantissa, int lowest>
ZMLX_DEVICE float short_float(uint32_t magnitude) {
  // As if every code had an implicit one; those that have none then give half their value too much.
  const float value = bits_to_float((magnitude << (23 - mantissa)) + (static_cast<uint32_t>(lowest - 1 + 127) << 23));
  const float least = bits_to_float(static_cast<uint32_t>(lowest + 127) << 23);
  return value < least ? 2 * value - least : value;
}
ZMLX_DEVICE float from_e2m1(uint32_t code) {
  const float size = short_float<1, 0>(code & 7);
  return code & 8 ? -size : size;
}
ZMLX_DEVICE float from_e4m3(uint32_t code) {
  const uint32_t magnitude = code & 127;
  const float size = magnitude == 127 ? bits_to_float(0x7FC00000u) : short_float<3, -6>(magnitude);
  return code & 128 ? -size : size;
}
/// 2^(code - 127); 255 is infinity.
ZMLX_DEVICE float from_e8m0(uint32_t code) {
  return bits_to_float(code ? code << 23 : 0x00400000u);
}

/// What a code stands for, before its scale.
template <typename W>
ZMLX_DEVICE float value_of(uint32_t code) {
  if constexpr (same_type<W, Mxfp8>) {
    return from_e4m3(code);
  } else if constexpr (!W::affine) {
    return from_e2m1(code);
  } else {
    return bits_to_float(code | 0x4B000000u) - 8388608.0f; // 2^23 + code
  }
}

/// Scale number `group` of a row of scales.
template <typename T, typename W>
ZMLX_DEVICE float scale_at(const void* scales, int64_t group) {
  if constexpr (W::affine) {
    return to_float(static_cast<const T*>(scales)[group]);
  } else if constexpr (same_type<W, Nvfp4>) {
    return from_e4m3(static_cast<const uint8_t*>(scales)[group]);
  } else {
    return from_e8m0(static_cast<const uint8_t*>(scales)[group]);
  }
}
/// 0 in formats without biases.
template <typename T, typename W>
ZMLX_DEVICE float bias_at(const void* biases, int64_t group) {
  if constexpr (W::affine) {
    return to_float(static_cast<const T*>(biases)[group]);
  } else {
    return 0;
  }
}

/// A weight matrix [n, k], or experts on end; scales and biases [n, k / group].
struct Weight {
  const uint8_t* codes;
  const uint8_t* scales;
  const uint8_t* biases;
};

ZMLX_DEVICE Weight weight_at(Pointer codes, Pointer scales, Pointer biases) {
  return {codes.as<uint8_t>(), scales.as<uint8_t>(), biases.as<uint8_t>()};
}

/// The same from row `row` on, rows being k long: also an expert's, at row expert * n.
template <typename T, typename W>
ZMLX_DEVICE Weight weight_row(Weight weight, int64_t row, int64_t k) {
  if constexpr (W::dense) {
    return {weight.codes + row * k * static_cast<int64_t>(sizeof(T)), nullptr, nullptr};
  } else {
    const int64_t scale = row * (k / W::group) * scale_bytes<T, W>;
    return {weight.codes + row * (k * W::bits / 8), weight.scales + scale, weight.biases + scale};
  }
}

/// Elements 8 * i to 8 * i + 7 of a unit's words, in float32.
template <typename W>
ZMLX_DEVICE void dequantise8(float (&to)[8], const uint32_t* words, int i, float scale, float bias) {
  for (int j = 0; j < 8; ++j) {
    const float value = value_of<W>(code_at<W>(words, 8 * i + j));
    to[j] = W::affine ? fmaf(value, scale, bias) : value * scale;
  }
}

/// The same rounded to T: pairs (0, 1), (2, 3), (4, 5), (6, 7).
template <typename T, typename W>
ZMLX_DEVICE void dequantise8(uint32_t (&to)[4], const uint32_t* words, int i, float scale, float bias) {
  float values[8];
  dequantise8<W>(values, words, i, scale, bias);
  for (int j = 0; j < 4; ++j) {
    to[j] = pack2<T>(values[2 * j], values[2 * j + 1]);
  }
}

/// Element i of a row, in float32; for what is read once.
template <typename T, typename W>
ZMLX_DEVICE float element_at(Weight row, int64_t i) {
  if constexpr (W::dense) {
    return to_float(reinterpret_cast<const T*>(row.codes)[i]);
  } else {
    const int64_t bit = i * W::bits;
    uint32_t code = static_cast<uint32_t>(row.codes[bit / 8]) >> (bit % 8);
    if (bit % 8 + W::bits > 8) {
      code |= static_cast<uint32_t>(row.codes[bit / 8 + 1]) << (8 - bit % 8);
    }
    const float value = value_of<W>(code & ((1u << W::bits) - 1));
    return fmaf(value, scale_at<T, W>(row.scales, i / W::group), bias_at<T, W>(row.biases, i / W::group));
  }
}

/// How a thread multiplies codes by tensor cores: pairs of T in the order of a format's cheapest extraction, each element
/// `offset` too large. Pair i of 8 elements holds elements first(i) and second(i).
template <typename T, typename W>
struct Pairs {
  static constexpr bool four = W::bits == 4;
  static constexpr bool eight = W::bits == 8;
  static constexpr bool bf = same_type<T, bf16>;
  static constexpr float offset = !W::affine ? 0.0f : !bf ? 1024.0f : eight ? 0.0f : 128.0f;

  static ZMLX_DEVICE constexpr int first(int i) {
    return four ? i : eight ? i / 2 * 4 + i % 2 : 2 * i;
  }
  static ZMLX_DEVICE constexpr int second(int i) {
    return first(i) + (four ? 4 : eight ? 2 : 1);
  }

  /// Pair i of elements 8 * block to 8 * block + 7.
  static ZMLX_DEVICE uint32_t get(const uint32_t* words, int block, int i) {
    constexpr uint32_t magic = bf ? 0x43004300u : 0x64006400u; // 128, 1024: where the last bit of T is worth one
    if constexpr (W::dense) {
      return words[4 * block + i];
    } else if constexpr (W::affine && four) {
      return and_or<0x000F000Fu, magic>(words[block] >> (4 * i));
    } else if constexpr (W::affine && eight && !bf) {
      return and_or<0x00FF00FFu, magic>(words[2 * block + i / 2] >> (8 * (i % 2)));
    } else if constexpr (W::affine && eight) {
      return pack2<T>(
          value_of<W>(code_at<W>(words, 8 * block + first(i))), value_of<W>(code_at<W>(words, 8 * block + second(i))));
    } else if constexpr (W::affine) {
      return code_at<W>(words, 8 * block + first(i)) | code_at<W>(words, 8 * block + second(i)) << 16 | magic;
    } else if constexpr (four) { // exponents as T's, too small by a power of two
      const uint32_t code = words[block] >> (4 * i);
      const uint32_t small = (code & 0x00070007u) << (bf ? 6 : 9) | (code & 0x00080008u) << 12;
      return fma2<T>(small, bf ? 0x7E807E80u : 0x74007400u, 0x80008000u);
    } else {
      const uint32_t code = words[2 * block + i / 2] >> (8 * (i % 2));
      const uint32_t small = (code & 0x007F007Fu) << (bf ? 4 : 7) | (code & 0x00800080u) << 8;
      return fma2<T>(small, bf ? 0x7B807B80u : 0x5C005C00u, 0x80008000u);
    }
  }
};
