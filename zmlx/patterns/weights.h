// zmlx/patterns/weights.h: weight formats in patterns: how many arrays a weight is, how MLX
// multiplies by it.
#pragma once

#include "zmlx/patterns/pattern.h"

namespace zmlx {

/// The variables of the i-th of several weights that start at variable `first`.
Arrays weight_at(const Arrays& variables, size_t first, size_t i, const Attrs& attrs);

/// mode, group_size and bits of `from`.
Attrs format_of(const Attrs& from);
/// The format of a QuantizedMatmul or GatherQMM node; nothing unless it multiplies by the
/// transposed weight.
std::optional<Attrs> format_of(const Node& node);
Attrs unquantised();

/// MLX's arguments for a quantised weight in the format of `attrs`.
struct QuantisedWeight {
  QuantisedWeight(const Arrays& weight, const Attrs& attrs);

  mx::array codes;
  mx::array scales;
  std::optional<mx::array> biases;
  int group_size;
  int bits;
  std::string mode;
};

/// `from` with these attributes set.
Attrs with(Attrs from, const Attrs& more);

/// Concatenated.
Arrays join(std::initializer_list<Arrays> parts);

/// Formats to trace and test patterns on.
std::vector<Attrs> example_formats();
/// A random array for an example.
mx::array example_array(mx::Shape shape, mx::Dtype dtype = mx::float32);
/// A random weight [rows, columns], or [experts, rows, columns], in the format of `attrs`.
Arrays example_weight(int rows, int columns, const Attrs& attrs, int experts = 0);

} // namespace zmlx
