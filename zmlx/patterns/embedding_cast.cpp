// zmlx/patterns/embedding_cast.cpp: rows of a table of short floats, cast: looked up in the wider
// dtype at once.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

/// Codes times scales are exact in bfloat16, so the cast changes no value.
Arrays find(const Arrays& v, const Attrs& attrs) {
  const Attrs narrow = with(format_of(attrs), {{"dtype", "bfloat16"}});
  return {mx::astype(call("embedding", v, narrow)[0], mx::float32)};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  const Attrs format{{"mode", "mxfp4"}, {"group_size", int64_t{32}}, {"bits", int64_t{4}}};
  auto tokens = mx::array({1, 3}, {1, 2}, mx::int32);
  examples.push_back({"mxfp4", join({{tokens}, example_weight(5, 64, format)}), format});
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& attrs = match.node("embedding").attrs;
  const bool exact = attrs.has("dtype") && attrs.text("dtype") == "bfloat16";
  return exact ? std::optional(format_of(attrs)) : std::nullopt;
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("embedding", v, with(attrs, {{"dtype", "float32"}}));
}

Arrays cast_to_float16(const Arrays& v, const Attrs& attrs) {
  const Attrs narrow = with(format_of(attrs), {{"dtype", "bfloat16"}});
  return {mx::astype(call("embedding", v, narrow)[0], mx::float16)};
}

ZMLX_PATTERN(embedding_cast)
    .stage(1)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("a cast to a dtype that is not wider", cast_to_float16, [] { return fires()[0]; });

} // namespace
} // namespace zmlx
