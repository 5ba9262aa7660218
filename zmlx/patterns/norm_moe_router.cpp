// zmlx/patterns/norm_moe_router.cpp: an RMS norm in front of a router, which hands the normalised
// input to the experts.
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Attrs router(const Attrs& attrs) {
  return with(
      format_of(attrs), {{"k", attrs.integer("k")}, {"normalize", attrs.integer("normalize")}});
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  Arrays in{call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]};
  in.insert(in.end(), v.begin() + 2, v.end());
  auto out = call("moe_router", in, router(attrs));
  return {in[0], out[0], out[1]};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    examples.push_back(
        {format.text("mode"),
         join({{example_array({1, 3, 32}), example_array({32})}, example_weight(8, 32, format)}),
         with(format, {{"k", int64_t{2}}, {"normalize", int64_t{1}}, {"eps", 1e-5}})});
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  return with(match.node("moe_router").attrs, {{"eps", match.node("rms_norm").attrs.real("eps")}});
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("moe_router", v, with(attrs, {{"norm", int64_t{1}}}));
}

Arrays router_of_another_input(const Arrays& v, const Attrs& attrs) {
  auto out = call("moe_router", join({{v[0]}, {v.begin() + 2, v.end()}}), router(attrs));
  out.insert(out.begin(), call("rms_norm", {v[0], v[1]}, {{"eps", attrs.real("eps")}})[0]);
  return out;
}

ZMLX_PATTERN(norm_moe_router)
    .stage(3)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("a router that reads the input itself", router_of_another_input, [] {
      return fires()[0];
    });

} // namespace
} // namespace zmlx
