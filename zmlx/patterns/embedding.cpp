// zmlx/patterns/embedding.cpp: rows of a table by token, dequantised where the table is quantised.
#include "mlx/ops.h"
#include "zmlx/graph/capture.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

mx::Dtype dtype_named(const std::string& name) {
  for (auto dtype : {Dtype::f32, Dtype::f16}) {
    if (name == name_of(dtype)) {
      return mlx_dtype(dtype);
    }
  }
  return mx::bfloat16;
}

/// The format of a table whose rows have `width` values in `words`.
Attrs format_of(const char* mode, int64_t width, int64_t words, int64_t groups) {
  return {{"mode", mode}, {"group_size", width / groups}, {"bits", words * 32 / width}};
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  auto rows = [&](size_t i) { return mx::take(v[i], v[0], 0); };
  if (attrs.text("mode") == "none") {
    return {rows(1)};
  }
  Arrays weight;
  for (size_t i = 1; i < v.size(); ++i) {
    weight.push_back(rows(i));
  }
  QuantisedWeight w(weight, attrs);
  std::optional<mx::Dtype> dtype;
  if (attrs.has("dtype")) {
    dtype = dtype_named(attrs.text("dtype"));
  }
  return {mx::dequantize(
      w.codes, w.scales, w.biases, w.group_size, w.bits, w.mode, std::nullopt, dtype)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  auto tokens = mx::array({1, 3}, {1, 2}, mx::int32);
  examples.push_back({"unquantised", {tokens, example_array({5, 64})}, unquantised()});
  for (int64_t bits : {2, 3, 4, 5, 6, 8}) {
    for (int columns : {32, 64}) {
      Attrs format{{"mode", "affine"}, {"group_size", int64_t{32}}, {"bits", bits}};
      examples.push_back(
          {std::to_string(bits) + " bits, " + std::to_string(columns) + " columns",
           join(
               {{columns == 32 ? mx::array({1}, {1, 1}, mx::int32) : tokens},
                example_weight(5, columns, format)}),
           format});
    }
  }
  for (auto mode : {"mxfp4", "mxfp8", "nvfp4"}) {
    for (auto dtype : {"float32", "bfloat16"}) {
      for (int columns : {32, 64}) {
        int64_t bits = mode == std::string("mxfp8") ? 8 : 4;
        auto format = format_of(
            mode, columns, columns * bits / 32, columns / (mode == std::string("nvfp4") ? 16 : 32));
        examples.push_back(
            {std::string(mode) + ", " + dtype + ", " + std::to_string(columns) + " columns",
             join(
                 {{columns == 32 ? mx::array({1}, {1, 1}, mx::int32) : tokens},
                  example_weight(5, columns, format)}),
             with(format, {{"dtype", dtype}})});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  // Tokens are the first variable; the table has to be a weight, or this is any lookup.
  for (size_t i = 1; i < match.variables(); ++i) {
    if (match.type(i).shape.rank() != 2) {
      return {};
    }
  }
  if (match.variables() == 2) {
    return is_floating(match.type(1).dtype) ? std::optional(unquantised()) : std::nullopt;
  }
  const int64_t words = match.type(1).shape[1];
  const int64_t groups = match.type(2).shape[1];
  if (match.variables() == 4) {
    const int64_t group = match.node("Add").outputs[0].shape[-1];
    return format_of("affine", groups * group, words, groups);
  }
  // Codes of fp8, scales of powers of two.
  const bool power = match.has("Power");
  const bool eight = power && match.has("FromFP8");
  const char* mode = !power ? "nvfp4" : eight ? "mxfp8" : "mxfp4";
  auto format = format_of(mode, words * (eight ? 4 : 8), words, groups);
  return with(format, {{"dtype", name_of(match.node("Multiply").outputs[0].dtype)}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("embedding", v, attrs);
}

Arrays columns_by_token(const Arrays& v, const Attrs&) {
  return {mx::take(v[1], v[0], 1)};
}

ZMLX_PATTERN(embedding).stage(0).find(find).fires(fires).attrs(read).put(put).keeps(
    "columns of a table",
    columns_by_token,
    [] { return fires()[0]; });

} // namespace
} // namespace zmlx
