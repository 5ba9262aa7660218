// zmlx/kernel/cpu/matmul_portable.cpp: float32 matmul for every weight format, built once for each
// instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/matmul_portable.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::MatmulKernels;
using cpu::MatmulShape;
using cpu::Rows;
using cpu::Weight;
using U32 = hn::Rebind<uint32_t, F32>;

constexpr int64_t tile_outputs = 8; // weight rows decoded together
constexpr int64_t tile_bytes = 65536;
constexpr int few_rows = 4; // up to here weights are used while they are decoded

int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

/// Codes per 32-bit word, where a word holds whole codes; otherwise elements are taken one by one.
int planes(const MatmulShape& s) {
  return s.format.bits == 2 || s.format.bits == 4 || s.format.bits == 8 ? 32 / s.format.bits : 1;
}

/// Floats of one prepared row before its group sums. Block b, plane c, lane i holds element (b *
/// lanes + i) * planes + c: what one word vector yields, shift by shift.
int64_t row_floats(const MatmulShape& s) {
  return round_up(s.k, planes(s) * static_cast<int64_t>(lanes()));
}

size_t prepared_bytes(const MatmulShape& s) {
  int64_t sums = round_up(s.groups(), static_cast<int64_t>(lanes()));
  const int64_t bytes = round_up((row_floats(s) + sums) * 4, 64);
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

template <typename T>
void prepare_row(const MatmulShape& s, const T* x, float* to) {
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t block = step * planes(s);
  float natural[32 * hn::MaxLanes(F32())];
  for (int64_t k = 0; k < row_floats(s); k += block) {
    for (int64_t i = 0; i < block; i += step) {
      const int64_t left = std::max<int64_t>(s.k - k - i, 0);
      store(load_some(x + (left ? k + i : 0), static_cast<size_t>(left)), natural + i);
    }
    for (int64_t c = 0; c < planes(s); ++c) {
      for (int64_t i = 0; i < step; ++i) {
        to[k + c * step + i] = natural[i * planes(s) + c];
      }
    }
  }
  float* sums = to + row_floats(s);
  std::fill_n(sums, round_up(s.groups(), step), 0.0f);
  for (int64_t g = 0; g < s.groups(); ++g) {
    Floats total = hn::Zero(F32());
    for (int64_t i = 0; i < s.format.group_size; i += step) {
      total = hn::Add(total, load(x + g * s.format.group_size + i));
    }
    sums[g] = sum(total);
  }
}

/// Floats of codes bits * c ... of each word.
template <int Bits>
HWY_INLINE Floats codes_of(hn::Vec<U32> words, int c) {
  const hn::Rebind<int32_t, F32> di;
  auto bits = hn::And(hn::ShiftRightSame(words, c * Bits), hn::Set(U32(), (1u << Bits) - 1));
  return hn::ConvertTo(F32(), hn::BitCast(di, bits));
}

HWY_INLINE hn::Vec<U32> load_words(const uint32_t* p, int64_t left) {
  if (HWY_LIKELY(left >= static_cast<int64_t>(lanes()))) {
    return hn::LoadU(U32(), p);
  }
  HWY_ALIGN uint32_t part[hn::MaxLanes(U32())] = {};
  std::copy_n(p, std::max<int64_t>(left, 0), part);
  return hn::Load(U32(), part);
}

/// For each lane of word vector `vector` in a run of lanes() groups, the group it lies in.
HWY_INLINE auto group_of_lane(int64_t vector, int words_log2) {
  const hn::Rebind<int32_t, F32> di;
  auto word = hn::Iota(di, static_cast<int32_t>(vector * static_cast<int64_t>(lanes())));
  return hn::IndicesFromVec(F32(), hn::ShiftRightSame(word, words_log2));
}

// Bytes ahead that weights are fetched. Rows are read side by side, which hardware prefetchers do
// not recognise, so the same lines are asked for in the order of their addresses.
constexpr int64_t codes_ahead = 8192;
constexpr int64_t scales_ahead = 1024;

/// The cache lines of [at, at + size) bytes after base, which may lie past the end: a prefetch does
/// nothing there.
HWY_INLINE void fetch(const void* base, int64_t at, int64_t size) {
  for (int64_t line = (at + 63) / 64 * 64; line < at + size; line += 64) {
    hwy::Prefetch(reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(base) + line));
  }
}

/// R weight rows times M rows of activations, codes used as they are decoded.
template <typename T, int Bits, int R, int M>
void dot_few(
    const MatmulShape& s,
    const uint8_t* codes,
    const T* scales,
    const T* biases,
    const float* const* x,
    float* out,
    int64_t ld) {
  constexpr int word_codes = 32 / Bits;
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t groups = s.groups();
  const int64_t words = s.k / word_codes;
  const int64_t group_words = s.format.group_size / word_codes;
  const int words_log2 = __builtin_ctzll(static_cast<uint64_t>(group_words));
  const int64_t sums = row_floats(s);
  Floats total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = hn::Zero(F32());
    }
  }
  for (int64_t g = 0; g < groups; g += step) {
    Floats scale[R];
    const int64_t scale_bytes = R * step * static_cast<int64_t>(sizeof(T));
    fetch(scales, scales_ahead + g / step * scale_bytes, scale_bytes);
    fetch(biases, scales_ahead + g / step * scale_bytes, scale_bytes);
    for (int r = 0; r < R; ++r) {
      scale[r] = load_some(scales + r * groups + g, static_cast<size_t>(groups - g));
      Floats bias = load_some(biases + r * groups + g, static_cast<size_t>(groups - g));
      for (int m = 0; m < M; ++m) {
        total[r][m] = hn::MulAdd(bias, load(x[m] + sums + g), total[r][m]);
      }
    }
    const int64_t first = g * group_words;
    const int64_t last = std::min(words, (g + step) * group_words);
    for (int64_t word = first; word < last; word += step) {
      const auto lane_group = group_of_lane((word - first) / step, words_log2);
      fetch(codes, codes_ahead + word * 4 * R, step * 4 * R);
      for (int r = 0; r < R; ++r) {
        auto row = reinterpret_cast<const uint32_t*>(codes + r * s.row_bytes());
        auto packed = load_words(row + word, words - word);
        Floats part[M];
        for (int m = 0; m < M; ++m) {
          part[m] = hn::Zero(F32());
        }
        HWY_UNROLL(16)
        for (int c = 0; c < word_codes; ++c) {
          Floats code = codes_of<Bits>(packed, c);
          for (int m = 0; m < M; ++m) {
            part[m] = hn::MulAdd(code, load(x[m] + word * word_codes + c * step), part[m]);
          }
        }
        Floats lane_scale = hn::TableLookupLanes(scale[r], lane_group);
        for (int m = 0; m < M; ++m) {
          total[r][m] = hn::MulAdd(part[m], lane_scale, total[r][m]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      out[m * ld + r] = sum(total[r][m]);
    }
  }
}

/// Weights of positions [begin, end) of one row as floats, in the order of prepared rows; `begin`
/// is a multiple of 2048, which whole runs of lanes() groups fill.
template <typename T, int Bits>
void decode_words(
    const MatmulShape& s,
    const uint8_t* codes,
    const T* scales,
    const T* biases,
    Range part,
    float* to) {
  constexpr int word_codes = 32 / Bits;
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t groups = s.groups();
  const int64_t words = s.k / word_codes;
  const int64_t group_words = s.format.group_size / word_codes;
  const int words_log2 = __builtin_ctzll(static_cast<uint64_t>(group_words));
  auto row = reinterpret_cast<const uint32_t*>(codes);
  const int64_t end = part.end / word_codes;
  for (int64_t first = part.begin / word_codes; first < end; first += step * group_words) {
    const int64_t g = first / group_words;
    const Floats scales_here = load_some(scales + g, static_cast<size_t>(groups - g));
    const Floats biases_here = load_some(biases + g, static_cast<size_t>(groups - g));
    const int64_t last = std::min(end, first + step * group_words);
    for (int64_t word = first; word < last; word += step) {
      const auto lane_group = group_of_lane((word - first) / step, words_log2);
      const Floats scale = hn::TableLookupLanes(scales_here, lane_group);
      const Floats bias = hn::TableLookupLanes(biases_here, lane_group);
      const auto packed = load_words(row + word, words - word);
      HWY_UNROLL(16)
      for (int c = 0; c < word_codes; ++c) {
        store(hn::MulAdd(codes_of<Bits>(packed, c), scale, bias), to);
        to += step;
      }
    }
  }
}

/// The same for codes that cross words: a little-endian stream of bits, eight codes in `bits`
/// bytes.
template <typename T>
void decode_stream(
    const MatmulShape& s,
    const uint8_t* codes,
    const T* scales,
    const T* biases,
    Range part,
    float* to) {
  const int bits = s.format.bits;
  const int64_t end = std::min(part.end, s.k);
  for (int64_t k = part.begin; k < end; k += 8) {
    uint64_t eight = 0;
    std::memcpy(&eight, codes + k / 8 * bits, static_cast<size_t>(bits));
    const int64_t g = k / s.format.group_size;
    const float scale = sum(load_some(scales + g, 1));
    const float bias = sum(load_some(biases + g, 1));
    for (int i = 0; i < 8; ++i) {
      const auto code = static_cast<float>((eight >> (i * bits)) & ((1u << bits) - 1));
      to[k - part.begin + i] = std::fma(code, scale, bias);
    }
  }
  std::fill(to + (end - part.begin), to + (part.end - part.begin), 0.0f);
}

template <typename T>
void decode_dense(const MatmulShape& s, const T* row, Range part, float* to) {
  const int64_t step = static_cast<int64_t>(lanes());
  for (int64_t k = part.begin; k < part.end; k += step) {
    store(
        load_some(row + k, static_cast<size_t>(std::max<int64_t>(s.k - k, 0))),
        to + k - part.begin);
  }
}

template <typename T>
void decode(const MatmulShape& s, const Weight& w, int64_t row, Range part, float* to) {
  auto codes = static_cast<const uint8_t*>(w.codes) + row * s.row_bytes();
  auto scales = static_cast<const T*>(w.scales) + row * s.groups();
  auto biases = static_cast<const T*>(w.biases) + row * s.groups();
  switch (s.format.bits) {
    case 0:
      return decode_dense(s, reinterpret_cast<const T*>(codes), part, to);
    case 2:
      return decode_words<T, 2>(s, codes, scales, biases, part, to);
    case 4:
      return decode_words<T, 4>(s, codes, scales, biases, part, to);
    case 8:
      return decode_words<T, 8>(s, codes, scales, biases, part, to);
    default:
      return decode_stream(s, codes, scales, biases, part, to);
  }
}

/// R decoded weight rows times M rows of activations over n floats.
template <int R, int M>
void dot_tile(
    const float* tile,
    int64_t stride,
    const float* const* x,
    int64_t n,
    bool first,
    float* out,
    int64_t ld) {
  const int64_t step = static_cast<int64_t>(lanes());
  Floats total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = hn::Zero(F32());
    }
  }
  for (int64_t k = 0; k < n; k += step) {
    Floats row[R];
    for (int r = 0; r < R; ++r) {
      row[r] = hn::Load(F32(), tile + r * stride + k);
    }
    for (int m = 0; m < M; ++m) {
      Floats value = load(x[m] + k);
      for (int r = 0; r < R; ++r) {
        total[r][m] = hn::MulAdd(row[r], value, total[r][m]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      float& to = out[m * ld + r];
      to = sum(total[r][m]) + (first ? 0.0f : to);
    }
  }
}

/// dot_tile for `height` weight rows and `count` <= M rows of activations.
template <int M>
void dot_tiles(
    const float* tile,
    int64_t stride,
    int64_t height,
    const float* const* x,
    int64_t count,
    int64_t n,
    bool first,
    float* out,
    int64_t ld) {
  if constexpr (M > 1) {
    if (count < M) {
      return dot_tiles<M - 1>(tile, stride, height, x, count, n, first, out, ld);
    }
  }
  int64_t r = 0;
  for (; r + 4 <= height; r += 4) {
    dot_tile<4, M>(tile + r * stride, stride, x, n, first, out + r, ld);
  }
  for (; r < height; ++r) {
    dot_tile<1, M>(tile + r * stride, stride, x, n, first, out + r, ld);
  }
}

const float* row_of(const Rows& rows, size_t row_bytes, int64_t i) {
  const size_t at = rows.index ? rows.index[i] : static_cast<size_t>(i);
  return reinterpret_cast<const float*>(rows.prepared + at * row_bytes);
}

template <typename T>
void run_tiles(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  constexpr int tall = registers == 32 ? 6 : 3; // 4 x tall accumulators fill the registers
  HWY_ALIGN float tile[tile_bytes / 4];
  const int64_t floats = row_floats(s);
  const int64_t chunk = tile_bytes / 4 / tile_outputs;
  for (int64_t j = outputs.begin; j < outputs.end; j += tile_outputs) {
    const int64_t height = std::min(tile_outputs, outputs.end - j);
    for (int64_t k = 0; k < floats; k += chunk) {
      const Range part{k, std::min(k + chunk, floats)};
      for (int64_t r = 0; r < height; ++r) {
        decode<T>(s, w, j + r, part, tile + r * chunk);
      }
      for (int64_t i = 0; i < rows.count;) {
        // The last rows in equal parts: 8 as 4 and 4, not 6 and 2.
        const int64_t left = rows.count - i;
        const int64_t parts = (left + tall - 1) / tall;
        const int64_t count = (left + parts - 1) / parts;
        const float* x[tall];
        for (int64_t m = 0; m < count; ++m) {
          x[m] = row_of(rows, row_bytes, i + m) + k;
        }
        float* to = out + i * ld + j - outputs.begin;
        const int64_t floats_here = part.end - part.begin;
        dot_tiles<tall>(tile, chunk, height, x, count, floats_here, k == 0, to, ld);
        i += count;
      }
    }
  }
}

template <typename T, int Bits, int M>
void run_few(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  constexpr int R = M == 1 ? 4 : 2;
  const float* x[M];
  for (int m = 0; m < M; ++m) {
    x[m] = row_of(rows, row_bytes, m);
  }
  for (int64_t j = outputs.begin; j < outputs.end;) {
    auto codes = static_cast<const uint8_t*>(w.codes) + j * s.row_bytes();
    auto scales = static_cast<const T*>(w.scales) + j * s.groups();
    auto biases = static_cast<const T*>(w.biases) + j * s.groups();
    float* to = out + j - outputs.begin;
    if (outputs.end - j >= R) {
      dot_few<T, Bits, R, M>(s, codes, scales, biases, x, to, ld);
      j += R;
    } else {
      dot_few<T, Bits, 1, M>(s, codes, scales, biases, x, to, ld);
      j += 1;
    }
  }
}

template <typename T>
void run_as(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  using Fn = decltype(&run_tiles<T>);
  static constexpr Fn few[2][few_rows] = {
      {run_few<T, 4, 1>, run_few<T, 4, 2>, run_few<T, 4, 3>, run_few<T, 4, 4>},
      {run_few<T, 8, 1>, run_few<T, 8, 2>, run_few<T, 8, 3>, run_few<T, 8, 4>}};
  const int bits = s.format.bits;
  if (rows.count > 0 && rows.count <= few_rows && (bits == 4 || bits == 8)) {
    few[bits == 8][rows.count - 1](s, w, outputs, rows, row_bytes, out, ld);
  } else {
    run_tiles<T>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

void prepare(const MatmulShape& s, const void* x, std::byte* to) {
  auto* row = reinterpret_cast<float*>(to);
  switch (s.dtype) {
    case Dtype::f16:
      return prepare_row(s, static_cast<const hwy::float16_t*>(x), row);
    case Dtype::bf16:
      return prepare_row(s, static_cast<const hwy::bfloat16_t*>(x), row);
    default:
      return prepare_row(s, static_cast<const float*>(x), row);
  }
}

void run(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  switch (s.dtype) {
    case Dtype::f16:
      return run_as<hwy::float16_t>(s, w, outputs, rows, row_bytes, out, ld);
    case Dtype::bf16:
      return run_as<hwy::bfloat16_t>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return run_as<float>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

const MatmulKernels* table() {
  static const MatmulKernels kernels{hwy::TargetName(HWY_TARGET), prepared_bytes, prepare, run};
  return &kernels;
}

} // namespace
} // namespace zmlx::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace zmlx {

HWY_EXPORT(table);

namespace cpu {

const MatmulKernels* portable_matmul() {
  return HWY_DYNAMIC_DISPATCH(table)();
}

std::vector<const MatmulKernels*> portable_matmuls() {
  std::vector<const MatmulKernels*> list;
  for (int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    list.push_back(portable_matmul());
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  return list;
}

} // namespace cpu
} // namespace zmlx
#endif
