// zmlx/patterns/moe_block.cpp: a router and the experts that it alone chooses, as one op.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

constexpr const char* prefix = "router_";

Attrs router_of(const Attrs& attrs) {
  return {
      {"norm", int64_t{1}},
      {"k", attrs.integer("k")},
      {"normalize", attrs.integer("normalize")},
      {"eps", attrs.real("eps")},
      {"mode", attrs.text("router_mode")},
      {"group_size", attrs.integer("router_group_size")},
      {"bits", attrs.integer("router_bits")}};
}

Attrs experts_of(const Attrs& attrs) {
  return with(
      format_of(attrs),
      {{"activation", attrs.text("activation")}, {"residual", attrs.integer("residual")}});
}

// Variables: x, the norm's weight, the router, the experts, [residual].
Arrays build(const Arrays& v, const Attrs& attrs, int seen) {
  const Attrs router = router_of(attrs);
  const auto first = v.begin() + 2 + static_cast<std::ptrdiff_t>(weight_at(v, 2, 0, router).size());
  auto routed = call("moe_router", {v.begin(), first}, router);
  auto y = call("moe_mlp", join({routed, {first, v.end()}}), experts_of(attrs))[0];
  return seen < 0 ? Arrays{y} : Arrays{y, routed[static_cast<size_t>(seen)]};
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, -1);
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  for (auto& format : example_formats()) {
    for (int64_t residual : {0, 1}) {
      Attrs attrs = with(
          format,
          {{"k", int64_t{2}},
           {"normalize", int64_t{1}},
           {"eps", 1e-5},
           {"activation", "silu"},
           {"residual", residual}});
      for (auto& [key, value] : format) {
        attrs.set(prefix + key, value);
      }
      examples.push_back(
          {format.text("mode") + (residual ? " with a residual" : ""),
           join(
               {{example_array({1, 3, 32}), example_array({32})},
                example_weight(8, 32, format),
                example_weight(64, 32, format, 8),
                example_weight(64, 32, format, 8),
                example_weight(32, 64, format, 8)}),
           attrs});
      if (residual) {
        examples.back().variables.push_back(example_array({1, 3, 32}));
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& router = match.node("moe_router").attrs;
  if (!router.integer("norm", 0)) {
    return {};
  }
  auto& experts = match.node("moe_mlp").attrs;
  Attrs attrs = with(
      format_of(experts),
      {{"activation", experts.text("activation")},
       {"residual", experts.integer("residual", 0)},
       {"k", router.integer("k")},
       {"normalize", router.integer("normalize", 0)},
       {"eps", router.real("eps")}});
  for (auto& [key, value] : format_of(router)) {
    attrs.set(prefix + key, value);
  }
  return attrs;
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  return call("moe_block", v, attrs);
}

Arrays indices_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, 1);
}

Arrays normalised_used_elsewhere(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, 0);
}

ZMLX_PATTERN(moe_block)
    .stage(5)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("the choice is used elsewhere", indices_used_elsewhere, [] { return fires()[0]; })
    .keeps("the normalised input is used elsewhere", normalised_used_elsewhere, [] {
      return fires()[1];
    });

} // namespace
} // namespace zmlx
