// zmlx/patterns/norm_mlp.cpp: an RMS norm in front of the MLP that alone reads it.
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Attrs mlp(const Attrs& attrs) {
  return with(format_of(attrs), {{"activation", attrs.text("activation")}});
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  Arrays in{call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]};
  in.insert(in.end(), v.begin() + 2, v.end());
  return call("mlp", in, mlp(attrs));
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    examples.push_back(
        {format.text("mode"),
         join(
             {{example_array({2, 3, 32}), example_array({32})},
              example_weight(64, 32, format),
              example_weight(64, 32, format),
              example_weight(32, 64, format)}),
         with(format, {{"activation", "silu"}, {"eps", 1e-5}})});
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return with(match.node("mlp").attrs, {{"eps", match.node("rms_norm").attrs.real("eps")}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("mlp", v, with(attrs, {{"norm", int64_t{1}}}));
}

Arrays with_norm_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  auto out = find(v, attrs);
  out.push_back(call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]);
  return out;
}

ZMLX_PATTERN(norm_mlp).stage(3).find(find).fires(fires).attrs(read).put(put).keeps(
    "the normalised input is used elsewhere",
    with_norm_used_elsewhere,
    [] { return fires()[0]; });

} // namespace
} // namespace zmlx
