// zmlx/kernel/cpu/matmul.cpp: picks the kernels for a matmul, and brings rows of activations to
// them.
#include "zmlx/kernel/cpu/matmul.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "zmlx/kernel/cpu/instruction_sets.h"
#include "zmlx/kernel/cpu/matmul_kernels.h"
#include "zmlx/kernel/cpu/rows.h"

namespace zmlx::cpu {
namespace {

const MatmulKernels* pick_int8(const MatmulShape& shape) {
  if (!is_restricted()) {
    for (auto* kernels :
         {amx_int8_matmul(), vnni_int8_matmul(), int16_matmul(shape, Activations::int8)}) {
      if (kernels) {
        return kernels;
      }
    }
  }
  return portable_int8_matmul();
}

/// Up to so many rows two products of bytes are faster than decoding weights for tiles.
constexpr int64_t byte_rows = 8;

const MatmulKernels* pick(const MatmulShape& shape, int64_t rows) {
  auto* portable = portable_matmul();
  if (is_restricted()) {
    return portable;
  }
  auto* tiles = shape.dtype == Dtype::bf16 ? amx_bf16_matmul() : nullptr;
  // Where there are tiles too, dot products of bf16 take twice as long as those of bytes, of which
  // an activation makes two; elsewhere they take as long.
  if ((tiles || shape.dtype == Dtype::f16) && rows <= byte_rows) {
    if (auto* int16 = vnni_int16_matmul(shape)) {
      return int16;
    }
  }
  if (tiles && rows >= tiled_rows) {
    return tiles;
  }
  if (auto* bf16 = bf16_matmul(); bf16 && shape.dtype == Dtype::bf16) {
    return bf16;
  }
  // Floats of AVX-512 are as wide as integers of AVX2.
  auto* int16 = std::string_view(portable->name) == "AVX2" ? int16_matmul(shape) : nullptr;
  return int16 ? int16 : portable;
}

/// Bytes of one normalised row.
size_t norm_bytes(const Matmul& matmul) {
  return (static_cast<size_t>(matmul.k()) * size_of(matmul.dtype()) + 63) & ~size_t{63};
}

} // namespace

bool Matmul::supports(Dtype dtype, WeightFormat format, int64_t k) {
  if (!is_floating(dtype) || k < 1) {
    return false;
  }
  if (format.bits == 0) {
    return true;
  }
  const int bits = format.bits;
  const int group = format.group_size;
  bool known = false;
  switch (format.mode) {
    case Quantisation::affine:
      known = bits >= 2 && bits <= 8 && bits != 7 && (group == 32 || group == 64 || group == 128);
      break;
    case Quantisation::mxfp4:
      known = bits == 4 && group == 32;
      break;
    case Quantisation::mxfp8:
      known = bits == 8 && group == 32;
      break;
    case Quantisation::nvfp4:
      known = bits == 4 && group == 16;
  }
  return known && k % group == 0;
}

Matmul::Matmul(Dtype dtype, WeightFormat format, int64_t k, Activations activations, int64_t rows)
    : dtype_(dtype), format_(format), k_(k) {
  MatmulShape shape{dtype, format, k};
  kernels_ = activations == Activations::int8 ? pick_int8(shape) : pick(shape, rows);
  prepared_bytes_ = kernels_->prepared_bytes(shape);
}

void Matmul::prepare(const void* x, std::byte* to) const {
  kernels_->prepare({dtype_, format_, k_}, x, to);
}

void Matmul::run(const Weight& weight, Range outputs, const Rows& rows, float* out, int64_t ld)
    const {
  kernels_->run({dtype_, format_, k_}, weight, outputs, rows, prepared_bytes_, out, ld);
}

Matmul::Block Matmul::block(int64_t rows) const {
  constexpr int64_t narrow = 64;
  constexpr int64_t low = 128;
  if (!kernels_->large_blocks) {
    return {narrow, low};
  }
  // Rows that a second cache of 2 MB holds beside all else.
  constexpr size_t cached = 1179648;
  const auto fit = static_cast<int64_t>(std::bit_floor(cached / prepared_bytes_));
  const int64_t high = rows > low ? std::clamp(fit, low, block_floats / narrow) : low;
  return {block_floats / high, high};
}

Weight Matmul::expert(const Weight& stack, int64_t e, int64_t n) const {
  MatmulShape shape{dtype_, format_, k_};
  auto at = [&](const void* base, int64_t bytes) -> const void* {
    return base ? static_cast<const std::byte*>(base) + e * n * bytes : nullptr;
  };
  const int64_t group_bytes = shape.groups() * shape.scale_bytes();
  return {
      at(stack.codes, shape.row_bytes()),
      at(stack.scales, group_bytes),
      at(stack.biases, group_bytes)};
}

size_t prepare_scratch(const Matmul& matmul, int64_t rows) {
  return static_cast<size_t>(rows) * (matmul.prepared_bytes() + norm_bytes(matmul));
}

Rows prepare_rows(
    const Matmul& matmul,
    const void* x,
    int64_t rows,
    Norm norm,
    std::byte* scratch,
    LocalRows& local,
    Member& member,
    void* normalised) {
  const size_t prepared = matmul.prepared_bytes();
  const size_t row_bytes = static_cast<size_t>(matmul.k()) * size_of(matmul.dtype());
  const bool own = static_cast<size_t>(rows) * prepared + norm_bytes(matmul) <= LocalRows::capacity;
  std::byte* to = own ? local.bytes : scratch;
  std::byte* spare = to + static_cast<size_t>(rows) * prepared;
  const Range mine = own ? Range{0, rows} : member.split(rows);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const size_t at = static_cast<size_t>(i);
    const std::byte* row = static_cast<const std::byte*>(x) + at * row_bytes;
    if (norm.weight) {
      std::byte* kept = spare + (own ? 0 : at * norm_bytes(matmul));
      rms_norm_row(matmul.dtype(), row, norm.weight, norm.eps, kept, matmul.k());
      row = kept;
      // With own copies each row still has one writer.
      if (normalised && (!own || i % member.size() == member.rank())) {
        std::memcpy(static_cast<std::byte*>(normalised) + at * row_bytes, row, row_bytes);
      }
    }
    matmul.prepare(row, to + at * prepared);
  }
  if (!own) {
    member.barrier();
  }
  return {to, rows, nullptr};
}

} // namespace zmlx::cpu
