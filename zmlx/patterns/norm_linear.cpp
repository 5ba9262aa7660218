// zmlx/patterns/norm_linear.cpp: an RMS norm in front of the linear layers that alone read it.
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

// Variables: x, the norm's weight, then the weights and biases.
Arrays find(const Arrays& v, const Attrs& attrs) {
  Arrays in{call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]};
  in.insert(in.end(), v.begin() + 2, v.end());
  Attrs of = with(
      format_of(attrs), {{"outputs", attrs.integer("outputs")}, {"bias", attrs.integer("bias")}});
  return call("linear", in, of);
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t outputs : {1, 2, 3}) {
      for (int64_t bias : {0, 1}) {
        Arrays in{example_array({2, 3, 32}), example_array({32})};
        for (int64_t i = 0; i < outputs; ++i) {
          in = join({in, example_weight(16, 32, format)});
          if (bias) {
            in.push_back(example_array({16}));
          }
        }
        examples.push_back(
            {format.text("mode") + ", " + std::to_string(outputs) + (bias ? ", bias" : ""),
             in,
             with(format, {{"outputs", outputs}, {"bias", bias}, {"eps", 1e-5}})});
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return with(match.node("linear").attrs, {{"eps", match.node("rms_norm").attrs.real("eps")}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("linear", v, with(attrs, {{"norm", int64_t{1}}}));
}

Arrays with_norm_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  auto out = find(v, attrs);
  out.push_back(call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]);
  return out;
}

ZMLX_PATTERN(norm_linear)
    .stage(3)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("the normalised input is used elsewhere", with_norm_used_elsewhere, [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
