// zmlx/kernel/cpu/matmul_portable.cpp: float32 matmul for every weight format, built once for each
// instruction set.
#include "zmlx/kernel/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "zmlx/kernel/cpu/matmul_portable.cpp"
#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"

#include <algorithm>
#include <array>

#include "zmlx/kernel/cpu/instruction_sets.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/kernel/cpu/minifloat-inl.h"
#include "zmlx/kernel/cpu/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace zmlx::HWY_NAMESPACE {
namespace {

using cpu::bits_of;
using cpu::Code;
using cpu::code_of;
using cpu::is_affine;
using cpu::MatmulKernels;
using cpu::MatmulShape;
using cpu::Rows;
using cpu::Weight;

constexpr int64_t tile_outputs = 8; // weight rows decoded together
constexpr int64_t tile_bytes = 65536;

int64_t round_up(int64_t n, int64_t step) {
  return (n + step - 1) / step * step;
}

/// Whole 32-bit words that hold whole codes: a lane takes one such unit.
constexpr int unit_words(Code code) {
  return code == Code::affine5 ? 5 : code == Code::affine3 || code == Code::affine6 ? 3 : 1;
}

/// Codes of a unit, each in its own plane.
constexpr int planes_of(Code code) {
  return code == Code::dense ? 1 : unit_words(code) * 32 / bits_of(code);
}

/// Floats of one prepared row before its group sums. Block b, plane c, lane i holds element (b *
/// lanes + i) * planes + c: what one vector of units yields, code by code.
int64_t row_floats(const MatmulShape& s) {
  return round_up(s.k, planes_of(code_of(s.format)) * static_cast<int64_t>(lanes()));
}

/// Group sums, for biases, and floats that fill a vector.
int64_t row_sums(const MatmulShape& s) {
  return s.format.has_biases() ? round_up(s.groups(), static_cast<int64_t>(lanes())) : 0;
}

size_t prepared_bytes(const MatmulShape& s) {
  const int64_t bytes = round_up((row_floats(s) + row_sums(s)) * 4, 64);
  // Rows a multiple of 4096 bytes apart would all meet in the same cache sets.
  return static_cast<size_t>(bytes % 4096 ? bytes : bytes + 64);
}

template <typename T>
void prepare_row(const MatmulShape& s, const T* x, float* to) {
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t planes = planes_of(code_of(s.format));
  const int64_t block = step * planes;
  float natural[32 * hn::MaxLanes(F32())];
  for (int64_t k = 0; k < row_floats(s); k += block) {
    for (int64_t i = 0; i < block; i += step) {
      const int64_t left = std::max<int64_t>(s.k - k - i, 0);
      store(load_some(x + (left ? k + i : 0), static_cast<size_t>(left)), natural + i);
    }
    for (int64_t c = 0; c < planes; ++c) {
      for (int64_t i = 0; i < step; ++i) {
        to[k + c * step + i] = natural[i * planes + c];
      }
    }
  }
  if (!s.format.has_biases()) {
    return;
  }
  float* sums = to + row_floats(s);
  std::fill_n(sums, row_sums(s), 0.0f);
  for (int64_t g = 0; g < s.groups(); ++g) {
    Floats total = hn::Zero(F32());
    for (int64_t i = 0; i < s.format.group_size; i += step) {
      total = hn::Add(total, load(x + g * s.format.group_size + i));
    }
    sums[g] = sum(total);
  }
}

/// Code c of units, as a float.
template <Code C>
HWY_INLINE Floats value_of(const hn::Vec<U32>* words, int c) {
  constexpr int bits = bits_of(C);
  const int word = c * bits / 32;
  const int shift = c * bits % 32;
  auto code = hn::ShiftRightSame(words[word], shift);
  if (shift + bits > 32) {
    code = hn::Or(code, hn::ShiftLeftSame(words[word + 1], 32 - shift));
  }
  if constexpr (C == Code::mxfp4 || C == Code::nvfp4) {
    return from_e2m1(F32(), code);
  } else if constexpr (C == Code::mxfp8) {
    return from_e4m3(code);
  } else {
    const auto whole = hn::And(code, hn::Set(U32(), (1u << bits) - 1));
    return hn::ConvertTo(F32(), hn::BitCast(hn::Rebind<int32_t, F32>(), whole));
  }
}

/// Where word j of lane i's unit lies in N vectors that hold the units one after the other. N is
/// odd, so that word j of different lanes lies in different places of their vectors.
template <int N>
struct UnitPlaces {
  static constexpr int count = static_cast<int>(hn::MaxLanes(F32()));
  alignas(64) uint32_t vector[N][count] = {}; // by place
  alignas(64) int32_t place[N][count] = {}; // by lane

  constexpr UnitPlaces() {
    for (int j = 0; j < N; ++j) {
      for (int i = 0; i < count; ++i) {
        const int at = i * N + j;
        vector[j][at % count] = static_cast<uint32_t>(at / count);
        place[j][i] = at % count;
      }
    }
  }
};
template <int N>
constexpr UnitPlaces<N> unit_places;

/// A unit a lane, from number `unit` of a row of `units`; zero past its end.
template <Code C>
HWY_INLINE void load_units(const uint32_t* row, int64_t unit, int64_t units, hn::Vec<U32>* words) {
  constexpr int n = unit_words(C);
  const int64_t step = static_cast<int64_t>(lanes());
  const uint32_t* from = row + unit * n;
  HWY_ALIGN uint32_t part[n * hn::MaxLanes(U32())];
  if (HWY_UNLIKELY(units - unit < step)) {
    std::fill_n(part, n * step, 0u);
    std::copy_n(from, std::max<int64_t>(units - unit, 0) * n, part);
    from = part;
  }
  if constexpr (n == 1) {
    words[0] = hn::LoadU(U32(), from);
  } else {
    hn::Vec<U32> raw[n];
    for (int v = 0; v < n; ++v) {
      raw[v] = hn::LoadU(U32(), from + v * step);
    }
    for (int j = 0; j < n; ++j) {
      const auto vector = hn::Load(U32(), unit_places<n>.vector[j]);
      auto mixed = raw[0];
      for (int v = 1; v < n; ++v) {
        const auto here = hn::Eq(vector, hn::Set(U32(), static_cast<uint32_t>(v)));
        mixed = hn::IfThenElse(here, raw[v], mixed);
      }
      words[j] = hn::TableLookupLanes(mixed, hn::SetTableIndices(U32(), unit_places<n>.place[j]));
    }
  }
}

/// One byte a lane, `left` of them.
HWY_INLINE hn::Vec<U32> load_bytes(const uint8_t* p, int64_t left) {
  const hn::Rebind<uint8_t, F32> db;
  if (HWY_LIKELY(left >= static_cast<int64_t>(lanes()))) {
    return hn::PromoteTo(U32(), hn::LoadU(db, p));
  }
  HWY_ALIGN uint8_t part[hn::MaxLanes(U32())] = {};
  std::copy_n(p, std::max<int64_t>(left, 0), part);
  return hn::PromoteTo(U32(), hn::LoadU(db, part));
}

/// Scales or biases of lanes() groups, of which `left` are there; affine ones have type `dtype`.
template <Code C>
HWY_INLINE Floats load_scales(Dtype dtype, const std::byte* p, int64_t left) {
  if constexpr (is_affine(C)) {
    const auto n = static_cast<size_t>(std::max<int64_t>(left, 0));
    switch (dtype) {
      case Dtype::f16:
        return load_some(reinterpret_cast<const hwy::float16_t*>(p), n);
      case Dtype::bf16:
        return load_some(reinterpret_cast<const hwy::bfloat16_t*>(p), n);
      default:
        return load_some(reinterpret_cast<const float*>(p), n);
    }
  } else {
    const auto code = load_bytes(reinterpret_cast<const uint8_t*>(p), left);
    if constexpr (C == Code::nvfp4) {
      return from_e4m3(code);
    } else {
      const auto least = hn::Set(U32(), 0x00400000u);
      return hn::BitCast(F32(), hn::Max(hn::ShiftLeft<23>(code), least));
    }
  }
}

/// For each lane of unit vector `vector` in a run of lanes() groups, the group it lies in.
HWY_INLINE auto group_of_lane(int64_t vector, int units_log2) {
  const hn::Rebind<int32_t, F32> di;
  auto unit = hn::Iota(di, static_cast<int32_t>(vector * static_cast<int64_t>(lanes())));
  return hn::IndicesFromVec(F32(), hn::ShiftRightSame(unit, units_log2));
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

/// Where a row's codes, scales and biases are, and how they are grouped.
template <Code C>
struct Row {
  const uint32_t* codes;
  const std::byte* scales;
  const std::byte* biases;

  Row(const MatmulShape& s, const Weight& w, int64_t row) {
    const int64_t at = row * s.groups() * s.scale_bytes();
    codes = reinterpret_cast<const uint32_t*>(
        static_cast<const std::byte*>(w.codes) + row * s.row_bytes());
    scales = static_cast<const std::byte*>(w.scales) + at;
    biases = is_affine(C) ? static_cast<const std::byte*>(w.biases) + at : nullptr;
  }
};

/// R weight rows, from row `j` on, times M rows of activations, codes used as they are decoded.
template <Code C, int R, int M>
void dot_few(
    const MatmulShape& s,
    const Weight& w,
    int64_t j,
    const float* const* x,
    float* out,
    int64_t ld) {
  constexpr int planes = planes_of(C);
  constexpr int64_t unit_bytes = unit_words(C) * 4;
  const int64_t size = s.scale_bytes();
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t groups = s.groups();
  const int64_t units = s.k / planes;
  const int64_t row_words = units * unit_words(C);
  const int64_t group_units = s.format.group_size / planes;
  const int units_log2 = __builtin_ctzll(static_cast<uint64_t>(group_units));
  const int64_t sums = row_floats(s);
  const Row<C> row(s, w, j);
  Floats total[R][M];
  for (int r = 0; r < R; ++r) {
    for (int m = 0; m < M; ++m) {
      total[r][m] = hn::Zero(F32());
    }
  }
  for (int64_t g = 0; g < groups; g += step) {
    Floats scale[R];
    fetch(row.scales, scales_ahead + g * size * R, R * step * size);
    if constexpr (is_affine(C)) {
      fetch(row.biases, scales_ahead + g * size * R, R * step * size);
    }
    for (int r = 0; r < R; ++r) {
      const int64_t at = (r * groups + g) * size;
      scale[r] = load_scales<C>(s.dtype, row.scales + at, groups - g);
      if constexpr (is_affine(C)) {
        const Floats bias = load_scales<C>(s.dtype, row.biases + at, groups - g);
        for (int m = 0; m < M; ++m) {
          total[r][m] = hn::MulAdd(bias, load(x[m] + sums + g), total[r][m]);
        }
      }
    }
    const int64_t first = g * group_units;
    const int64_t last = std::min(units, (g + step) * group_units);
    for (int64_t unit = first; unit < last; unit += step) {
      const auto lane_group = group_of_lane((unit - first) / step, units_log2);
      fetch(row.codes, codes_ahead + unit * unit_bytes * R, step * unit_bytes * R);
      for (int r = 0; r < R; ++r) {
        hn::Vec<U32> packed[unit_words(C)];
        load_units<C>(row.codes + r * row_words, unit, units, packed);
        Floats part[M];
        for (int m = 0; m < M; ++m) {
          part[m] = hn::Zero(F32());
        }
        HWY_UNROLL(32)
        for (int c = 0; c < planes; ++c) {
          const Floats code = value_of<C>(packed, c);
          for (int m = 0; m < M; ++m) {
            part[m] = hn::MulAdd(code, load(x[m] + unit * planes + c * step), part[m]);
          }
        }
        const Floats lane_scale = hn::TableLookupLanes(scale[r], lane_group);
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

/// Elements [begin, end) of one row as floats, in the order of prepared rows; `begin` is a multiple
/// of 2048, which whole runs of lanes() groups fill.
template <Code C>
void decode_units(const MatmulShape& s, const Row<C>& row, Range part, float* to) {
  constexpr int planes = planes_of(C);
  const int64_t step = static_cast<int64_t>(lanes());
  const int64_t groups = s.groups();
  const int64_t units = s.k / planes;
  const int64_t group_units = s.format.group_size / planes;
  const int units_log2 = __builtin_ctzll(static_cast<uint64_t>(group_units));
  const int64_t end = part.end / planes;
  for (int64_t first = part.begin / planes; first < end; first += step * group_units) {
    const int64_t g = first / group_units;
    const int64_t at = std::min(g, groups) * s.scale_bytes();
    const Floats scales = load_scales<C>(s.dtype, row.scales + at, groups - g);
    Floats biases = hn::Zero(F32());
    if constexpr (is_affine(C)) {
      biases = load_scales<C>(s.dtype, row.biases + at, groups - g);
    }
    const int64_t last = std::min(end, first + step * group_units);
    for (int64_t unit = first; unit < last; unit += step) {
      const auto lane_group = group_of_lane((unit - first) / step, units_log2);
      const Floats scale = hn::TableLookupLanes(scales, lane_group);
      const Floats bias = hn::TableLookupLanes(biases, lane_group);
      hn::Vec<U32> packed[unit_words(C)];
      load_units<C>(row.codes, unit, units, packed);
      HWY_UNROLL(32)
      for (int c = 0; c < planes; ++c) {
        const Floats code = value_of<C>(packed, c);
        if constexpr (is_affine(C)) {
          store(hn::MulAdd(code, scale, bias), to);
        } else {
          store(hn::Mul(code, scale), to);
        }
        to += step;
      }
    }
  }
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

template <typename T, Code C>
void decode(const MatmulShape& s, const Weight& w, int64_t row, Range part, float* to) {
  if constexpr (C == Code::dense) {
    decode_dense(s, static_cast<const T*>(w.codes) + row * s.k, part, to);
  } else {
    decode_units<C>(s, Row<C>(s, w, row), part, to);
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

template <typename T, Code C>
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
        decode<T, C>(s, w, j + r, part, tile + r * chunk);
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

template <Code C, int M>
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
  int64_t j = outputs.begin;
  for (; outputs.end - j >= R; j += R) {
    dot_few<C, R, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
  for (; j < outputs.end; ++j) {
    dot_few<C, 1, M>(s, w, j, x, out + j - outputs.begin, ld);
  }
}

template <Code C>
void run_code(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  switch (rows.count) {
    case 1:
      return run_few<C, 1>(s, w, outputs, rows, row_bytes, out, ld);
    case 2:
      return run_few<C, 2>(s, w, outputs, rows, row_bytes, out, ld);
    case 3:
      return run_few<C, 3>(s, w, outputs, rows, row_bytes, out, ld);
    case 4:
      return run_few<C, 4>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return run_tiles<float, C>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

void run_dense(
    const MatmulShape& s,
    const Weight& w,
    Range outputs,
    const Rows& rows,
    size_t row_bytes,
    float* out,
    int64_t ld) {
  switch (s.dtype) {
    case Dtype::f16:
      return run_tiles<hwy::float16_t, Code::dense>(s, w, outputs, rows, row_bytes, out, ld);
    case Dtype::bf16:
      return run_tiles<hwy::bfloat16_t, Code::dense>(s, w, outputs, rows, row_bytes, out, ld);
    default:
      return run_tiles<float, Code::dense>(s, w, outputs, rows, row_bytes, out, ld);
  }
}

/// run_code for each Code, in its order.
template <Code... C>
constexpr std::array<decltype(&run_dense), 1 + sizeof...(C)> functions_of() {
  return {run_dense, run_code<C>...};
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
  using enum Code;
  static constexpr auto all =
      functions_of<affine2, affine3, affine4, affine5, affine6, affine8, mxfp4, mxfp8, nvfp4>();
  all[static_cast<size_t>(code_of(s.format))](s, w, outputs, rows, row_bytes, out, ld);
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
  for (auto& name : instruction_sets()) {
    use_instruction_set(name);
    list.push_back(portable_matmul());
  }
  use_instruction_set("");
  return list;
}

} // namespace cpu
} // namespace zmlx
#endif
