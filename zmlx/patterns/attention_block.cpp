// zmlx/patterns/attention_block.cpp: heads split, q/k norm, RoPE and cache update as one op,
// attention as the next.
#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

Attrs rope_of(const Attrs& attrs) {
  return {
      {"dims", attrs.integer("dims")},
      {"traditional", attrs.integer("traditional")},
      {"scale", attrs.real("rope_scale")}};
}

Attrs attention_of(const Attrs& attrs) {
  return {
      {"scale", attrs.real("scale")},
      {"window", attrs.integer("window")},
      {"padded", attrs.integer("padded")},
      {"mask", "causal"}};
}

// Variables: q, k, v as the projections give them, [the norms' weights of q and k], inverse
// frequencies, offset, [positions if padded], keys, values.
// The keys go to rows `ahead` after the offset, the rotation begins `turn` after the position.
Arrays build(const Arrays& v, const Attrs& attrs, int ahead, int turn = 0) {
  bool norm = attrs.integer("norm") != 0;
  size_t padded = attrs.integer("padded") != 0;
  auto &inv_freq = v[norm ? 5 : 3], &offset = v[norm ? 6 : 4];
  auto position = v[(norm ? 6 : 4) + padded];
  auto row = ahead ? offset + mx::array(ahead, mx::int32) : offset;
  Arrays seen{offset};
  if (padded) {
    seen.push_back(position);
  }
  if (turn) {
    position = position + mx::array(turn, mx::int32);
  }
  auto heads = [&](const mx::array& x, int count) {
    return mx::reshape(x, {x.shape(0), x.shape(1), count, x.shape(2) / count});
  };
  auto turned = [&](const mx::array& x, int count, size_t weight) {
    auto y = heads(x, count);
    if (norm) {
      y = call("rms_norm", {y, v[weight]}, {{"eps", attrs.real("eps")}})[0];
    }
    return call("rope", {mx::transpose(y, {0, 2, 1, 3}), position, inv_freq}, rope_of(attrs))[0];
  };
  int q_heads = static_cast<int>(attrs.integer("q_heads"));
  int kv_heads = static_cast<int>(attrs.integer("kv_heads"));
  auto q = turned(v[0], q_heads, 3);
  auto k = turned(v[1], kv_heads, 4);
  auto value = mx::transpose(heads(v[2], kv_heads), {0, 2, 1, 3});
  auto keys = call("kv_update", {v[v.size() - 2], k, row}, {})[0];
  auto values = call("kv_update", {v[v.size() - 1], value, row}, {})[0];
  auto out = call("attention", join({{q, keys, values}, seen}), attention_of(attrs))[0];
  auto& shape = v[0].shape();
  out = mx::reshape(mx::transpose(out, {0, 2, 1, 3}), {shape[0], shape[1], -1});
  return {out, keys, values};
}

Arrays find(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, 0);
}

// `padded_batch` 0: one sequence, not padded.
Example example(int padded_batch, int64_t norm, int tokens, int kv_heads) {
  int batch = std::max(1, padded_batch);
  Arrays in{
      example_array({batch, tokens, 4 * 8}),
      example_array({batch, tokens, kv_heads * 8}),
      example_array({batch, tokens, kv_heads * 8})};
  if (norm) {
    in = join({in, {example_array({8}), example_array({8})}});
  }
  in = join({in, {mx::abs(example_array({4})), mx::array(3, mx::int32)}});
  if (padded_batch) {
    in.push_back(mx::arange(2, 2 - batch, -1, mx::int32));
  }
  in = join({in, {example_array({batch, kv_heads, 7, 8}), example_array({batch, kv_heads, 7, 8})}});
  return {
      "",
      in,
      {{"q_heads", int64_t{4}},
       {"kv_heads", int64_t{kv_heads}},
       {"norm", norm},
       {"padded", int64_t{padded_batch > 0}},
       {"eps", 1e-5},
       {"dims", int64_t{8}},
       {"traditional", int64_t{0}},
       {"rope_scale", 1.0},
       {"scale", 0.25},
       {"window", int64_t{0}}}};
}

std::vector<Example> fires() {
  std::vector<Example> examples;
  // Not padded, then batches of padded sequences.
  for (int batch : {0, 1, 2}) {
    for (int64_t norm : {0, 1}) {
      for (int tokens : {1, 2}) {
        for (int kv_heads : {2, 1}) {
          examples.push_back(example(batch, norm, tokens, kv_heads));
          examples.back().name = "case " + std::to_string(examples.size() - 1);
        }
      }
    }
  }
  return examples;
}

std::optional<Attrs> read(const Match& match) {
  auto& attention = match.node("attention");
  auto& rope = match.node("rope").attrs;
  bool norm = match.has("rms_norm");
  return Attrs{
      {"q_heads", attention.outputs[0].shape[1]},
      {"kv_heads", match.type(match.variables() - 2).shape[1]},
      {"norm", int64_t{norm}},
      {"padded", attention.attrs.integer("padded", 0)},
      {"eps", norm ? match.node("rms_norm").attrs.real("eps") : 0.0},
      {"dims", rope.integer("dims")},
      {"traditional", rope.integer("traditional")},
      {"rope_scale", rope.real("scale")},
      {"scale", attention.attrs.real("scale")},
      {"window", attention.attrs.integer("window", 0)}};
}

Arrays put(const Arrays& v, const Attrs& attrs) {
  Attrs of = with(
      rope_of(attrs),
      {{"q_heads", attrs.integer("q_heads")},
       {"kv_heads", attrs.integer("kv_heads")},
       {"norm", attrs.integer("norm")},
       {"padded", attrs.integer("padded")},
       {"eps", attrs.real("eps")}});
  auto updated = call("rope_kv_update", v, of);
  auto &q = updated[0], &keys = updated[1], &values = updated[2];
  auto offset = v.begin() + (attrs.integer("norm") ? 6 : 4);
  auto out = call(
      "attention",
      join({{q, keys, values}, {offset, v.end() - 2}}),
      with(attention_of(attrs), {{"heads_last", int64_t{1}}}))[0];
  return {out, keys, values};
}

Arrays writing_one_row_ahead(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, 1);
}

Arrays turning_one_position_ahead(const Arrays& v, const Attrs& attrs) {
  return build(v, attrs, 0, 1);
}

ZMLX_PATTERN(attention_block)
    .stage(3)
    .find(find)
    .fires(fires)
    .attrs(read)
    .put(put)
    .keeps("keys and values go to other rows", writing_one_row_ahead, [] { return fires()[0]; })
    .keeps("padded ones go to other rows", writing_one_row_ahead, [] { return fires().back(); })
    .keeps(
        "the mask's position is another one",
        turning_one_position_ahead,
        [] { return fires()[0]; })
    .keeps("the mask's positions are others", turning_one_position_ahead, [] {
      return fires().back();
    });

} // namespace
} // namespace zmlx
