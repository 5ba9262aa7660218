// zmlx/ops/moe_topk_gating.cpp: which experts take a token and with what weight, from the router's
// logits.
#include <algorithm>
#include <array>
#include <limits>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/kernel/cpu/top_k.h"
#include "zmlx/kernel/cuda/rows.h"
#include "zmlx/kernel/cuda/weights.h"
#include "zmlx/ops/check.h"

namespace zmlx {
namespace {

constexpr const char* name = "moe_topk_gating";
constexpr int64_t most_experts = cpu::most_softmax_top_k;

struct Gating {
  int64_t k;
  bool sigmoid;
  bool normalise;
  float scale;
  int64_t groups;
  int64_t chosen_groups;
};

Gating settings(const Attrs& attrs) {
  auto& scores = attrs.text("scores");
  if (scores != "softmax" && scores != "sigmoid") {
    fail(name, "scores must be softmax or sigmoid but got ", scores, ".");
  }
  return {
      attrs.integer("k"),
      scores == "sigmoid",
      attrs.integer("normalise", 1) != 0,
      static_cast<float>(attrs.real("scale", 1)),
      attrs.integer("n_group", 1),
      attrs.integer("topk_group", 1)};
}

void expect_groups(const Gating& op, int64_t experts) {
  if (op.groups < 1 || experts % op.groups) {
    fail(
        name, "n_group must divide the number of experts, ", experts, ", but got ", op.groups, ".");
  }
  if (op.chosen_groups < 1 || op.chosen_groups > op.groups) {
    fail(
        name,
        "topk_group must be from 1 to n_group, ",
        op.groups,
        ", but got ",
        op.chosen_groups,
        ".");
  }
  const int64_t open = experts / op.groups * op.chosen_groups;
  if (op.k > open) {
    fail(
        name,
        "k must be at most the number of experts in topk_group groups, ",
        open,
        ", but got ",
        op.k,
        ".");
  }
}

Types types(const Types& in, const Attrs& attrs) {
  auto op = settings(attrs);
  if (in.empty() || in.size() > 2) {
    fail(name, "expected logits and at most a bias but got ", in.size(), " inputs.");
  }
  expect_floating(name, "logits", in[0]);
  if (in[0].shape.rank() == 0) {
    fail(name, "logits must have at least 1 axis but got a number.");
  }
  const int64_t experts = in[0].shape[-1];
  if (op.k < 1 || op.k > experts) {
    fail(name, "k must be from 1 to the number of experts, ", experts, ", but got ", op.k, ".");
  }
  expect_groups(op, experts);
  if (in.size() == 2) {
    expect_dtype(name, "bias", in[1], Dtype::f32);
    expect_shape(name, "bias", in[1], {experts});
  }
  Type weights = in[0];
  weights.shape[-1] = op.k;
  return {weights, {Dtype::u32, weights.shape}};
}

/// -inf for all experts but those of the groups whose two largest keys have the largest sum.
mx::array in_chosen_groups(const mx::array& keys, const Gating& op) {
  auto shape = keys.shape();
  const int size = shape.back() / static_cast<int>(op.groups);
  shape.back() = static_cast<int>(op.groups);
  shape.push_back(size);
  auto grouped = mx::reshape(keys, shape);
  auto best = find_op("topk")->reference({grouped}, {{"k", int64_t{std::min(size, 2)}}})[0];
  auto chosen = find_op("topk")->reference({mx::sum(best, -1)}, {{"k", op.chosen_groups}})[1];
  auto numbers = mx::arange(static_cast<double>(op.groups), mx::uint32);
  auto is_chosen = mx::any(
      mx::equal(mx::expand_dims(chosen, -1), numbers), -2); // any of the chosen is this group
  auto none = mx::array(-std::numeric_limits<float>::infinity());
  return mx::reshape(mx::where(mx::expand_dims(is_chosen, -1), grouped, none), keys.shape());
}

Arrays reference(const Arrays& in, const Attrs& attrs) {
  auto op = settings(attrs);
  auto logits = mx::astype(in[0], mx::float32);
  auto scores = op.sigmoid ? mx::sigmoid(logits) : mx::softmax(logits, -1);
  auto keys = mx::stop_gradient(in.size() == 2 ? scores + in[1] : scores);
  if (op.groups > 1) {
    keys = in_chosen_groups(keys, op);
  }
  auto indices = find_op("topk")->reference({keys}, {{"k", op.k}})[1];
  auto weights = mx::take_along_axis(scores, indices, -1);
  if (op.normalise) {
    weights = weights / mx::sum(weights, -1, true);
  }
  weights = weights * mx::array(op.scale);
  return {mx::astype(weights, in[0].dtype()), indices};
}

/// Sets the keys of all groups but the chosen ones to -inf, in place. A score may be NaN: its group
/// then comes first, as NaN does among experts.
void close_groups(const Gating& op, float* keys, int64_t experts) {
  const int64_t size = experts / op.groups;
  std::array<float, most_experts> sums;
  std::array<float, most_experts> best;
  std::array<uint32_t, most_experts> chosen;
  for (int64_t g = 0; g < op.groups; ++g) {
    const int64_t count = std::min<int64_t>(size, 2);
    cpu::top_k_rows(Dtype::f32, keys + g * size, 1, size, count, best.data(), chosen.data());
    sums[static_cast<size_t>(g)] = count == 2 ? best[0] + best[1] : best[0];
  }
  cpu::top_k_rows(
      Dtype::f32, sums.data(), 1, op.groups, op.chosen_groups, best.data(), chosen.data());
  auto* last = chosen.data() + op.chosen_groups;
  for (int64_t g = 0; g < op.groups; ++g) {
    if (std::find(chosen.data(), last, static_cast<uint32_t>(g)) == last) {
      std::fill_n(keys + g * size, size, -std::numeric_limits<float>::infinity());
    }
  }
}

void run(const Gating& op, const Call& call, Member& member) {
  const Tensor& logits = call.in[0];
  const Dtype dtype = logits.dtype();
  const auto bytes = static_cast<int64_t>(size_of(dtype));
  const int64_t experts = logits.shape()[-1];
  const float* bias = call.in.size() == 2 ? call.in[1].as<float>() : nullptr;
  std::array<float, most_experts> scores;
  std::array<float, most_experts> keys;
  std::array<float, most_experts> weights;
  const Range part = member.split(logits.shape().rows());
  if (!op.sigmoid && !bias && op.groups == 1) {
    return cpu::softmax_top_k_rows(
        dtype,
        logits.as<std::byte>() + part.begin * experts * bytes,
        part.end - part.begin,
        experts,
        op.k,
        op.normalise,
        op.scale,
        call.out[0].as<std::byte>() + part.begin * op.k * bytes,
        call.out[1].as<uint32_t>() + part.begin * op.k);
  }
  for (int64_t r = part.begin; r < part.end; ++r) {
    cpu::load_row(dtype, logits.as<std::byte>() + r * experts * bytes, keys.data(), experts);
    if (op.sigmoid) {
      cpu::activate(
          cpu::Activation::sigmoid, Dtype::f32, nullptr, keys.data(), experts, scores.data());
    } else {
      cpu::softmax_rows(Dtype::f32, keys.data(), 1, experts, 1, false, false, scores.data());
    }
    float* by = scores.data();
    if (bias) {
      cpu::add_row(Dtype::f32, scores.data(), bias, experts, keys.data());
      by = keys.data();
    }
    if (op.groups > 1) {
      // Scores themselves stay whole: the weights are read from them.
      by = keys.data();
      if (!bias) {
        std::copy_n(scores.data(), experts, by);
      }
      close_groups(op, by, experts);
    }
    auto* indices = call.out[1].as<uint32_t>() + r * op.k;
    cpu::top_k_rows(Dtype::f32, by, 1, experts, op.k, weights.data(), indices);
    float total = 0;
    for (int64_t i = 0; i < op.k; ++i) {
      const auto n = static_cast<size_t>(i);
      weights[n] = scores[indices[i]];
      total += weights[n];
    }
    cpu::scale_row(op.normalise ? op.scale / total : op.scale, weights.data(), op.k);
    cpu::store_row(dtype, weights.data(), call.out[0].as<std::byte>() + r * op.k * bytes, op.k);
  }
}

CpuKernel kernel(const Types& in, const Types&, const Attrs& attrs) {
  auto op = settings(attrs);
  if (in[0].shape[-1] > most_experts) {
    return {};
  }
  return {[op](const Call& call, Member& member) { run(op, call, member); }};
}

cuda::Kernel cuda_kernel(const Types& in, const Types&, const Attrs& attrs, const cuda::Device&) {
  auto op = settings(attrs);
  const Shape& logits = in[0].shape;
  if (logits.size() == 0 || op.k > 32 || op.groups > 1 || logits[-1] > most_experts ||
      logits.rows() > std::numeric_limits<int32_t>::max()) {
    return {};
  }
  auto flag = [](bool value) { return value ? ", true" : ", false"; };
  const bool biased = in.size() == 2;
  auto launch = cuda::warp_a_row(
      "search.cuh",
      "gate_experts<" + cuda::text_of(in[0].dtype) + flag(op.sigmoid) + flag(biased) +
          flag(op.normalise) + ">",
      logits.rows());
  launch.arguments = {
      cuda::in(0),
      cuda::in(biased ? 1 : 0),
      cuda::out(0),
      cuda::out(1),
      cuda::i32(logits.rows()),
      cuda::i32(logits[-1]),
      cuda::i32(op.k),
      cuda::f32(op.scale)};
  return {{launch}, 0};
}

Case example(std::string label, mx::Shape shape, bool bias, Attrs attrs) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in{random_case(shape, dtype, 1, 2)};
        if (bias) {
          in.push_back(random_case({shape.back()}, mx::float32, 2, 0.1f));
        }
        return in;
      },
      std::move(attrs)};
}

Attrs gating(int64_t k, std::string scores, int64_t normalise = 1, double scale = 1) {
  return {{"k", k}, {"scores", std::move(scores)}, {"normalise", normalise}, {"scale", scale}};
}

Attrs grouped(Attrs attrs, int64_t groups, int64_t chosen) {
  return attrs.set("n_group", groups).set("topk_group", chosen);
}

} // namespace

ZMLX_OP(moe_topk_gating)
    .args({"logits", "*bias"})
    .doc(
        "The k experts of largest score for each row of logits [.., E]: their weights, in logits' "
        "dtype, and indices (uint32), both [.., k], largest first, of equal scores the lower index "
        "first. Scores are the softmax or the sigmoid of the logits in float32. A bias [E] (float32) "
        "is added to the scores for the choice alone. With n_group > 1 the experts are that many "
        "groups of neighbours, and only those of the topk_group groups with the largest sum of their "
        "two largest scores can be chosen (DeepSeek-V3, 2024).")
    .function({
        {"k", "experts for each row", {}},
        {"scores", "softmax or sigmoid", std::string("softmax")},
        {"normalise", "whether the k weights are made to sum to one", int64_t{1}},
        {"scale", "multiplies the weights", 1.0},
        {"n_group", "groups of experts", int64_t{1}},
        {"topk_group", "groups that can be chosen from", int64_t{1}},
    })
    .types(types)
    .reference(reference)
    .cpu(kernel)
    .cuda(cuda_kernel)
    .cases({
        example("token", {1, 128}, false, gating(8, "softmax")),
        example("prompt", {37, 64}, false, gating(2, "softmax", 0)),
        example("sigmoid", {5, 33}, true, gating(4, "sigmoid", 1, 2.5)),
        example("groups", {37, 256}, true, grouped(gating(8, "sigmoid", 1, 2.5), 8, 4)),
        example("groups of one", {5, 7}, false, grouped(gating(3, "softmax"), 7, 3)),
        example("groups, softmax", {3, 33}, true, grouped(gating(11, "softmax", 0), 3, 1)),
        example("one", {3, 1}, false, gating(1, "softmax")),
        example("all", {2, 2, 7}, false, gating(7, "sigmoid", 0)),
        example("empty", {0, 8}, false, gating(2, "softmax")),
    });

} // namespace zmlx
