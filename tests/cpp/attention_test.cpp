// tests/cpp/attention_test.cpp: attention where it is easy to get wrong: garbage in the cache,
// masks, windows, grouped heads, odd sizes, long contexts.
#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

mx::array random(mx::Shape shape, uint64_t seed, mx::Dtype dtype = mx::float32) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), dtype);
}

/// Softmax attention in float64 arithmetic on the visible keys alone, one query at a time.
mx::array by_hand(
    const mx::array& q,
    const mx::array& keys,
    const mx::array& values,
    int offset,
    int window) {
  const int heads = q.shape(1);
  const int group = heads / keys.shape(1);
  const int tokens = q.shape(2);
  const int width = q.shape(3);
  const int value_width = values.shape(3);
  const int capacity = keys.shape(2);
  auto a = floats(q);
  auto k = floats(keys);
  auto v = floats(values);
  std::vector<float> out;
  for (int b = 0; b < q.shape(0); ++b) {
    for (int h = 0; h < heads; ++h) {
      const size_t head = static_cast<size_t>(b * keys.shape(1) + h / group);
      for (int t = 0; t < tokens; ++t) {
        const float* row = &a[static_cast<size_t>(((b * heads + h) * tokens + t) * width)];
        const int begin = window ? std::max(0, offset + t - window + 1) : 0;
        std::vector<double> sums(static_cast<size_t>(value_width), 0);
        std::vector<double> scores;
        double high = -INFINITY;
        for (int j = begin; j <= offset + t; ++j) {
          double s = 0;
          for (int d = 0; d < width; ++d) {
            s += static_cast<double>(row[d]) *
                k[(head * static_cast<size_t>(capacity) + static_cast<size_t>(j)) *
                      static_cast<size_t>(width) +
                  static_cast<size_t>(d)];
          }
          scores.push_back(s / std::sqrt(width));
          high = std::max(high, scores.back());
        }
        double total = 0;
        for (int j = begin; j <= offset + t; ++j) {
          double p = std::exp(scores[static_cast<size_t>(j - begin)] - high);
          total += p;
          for (size_t d = 0; d < sums.size(); ++d) {
            sums[d] += p *
                v[(head * static_cast<size_t>(capacity) + static_cast<size_t>(j)) * sums.size() +
                  d];
          }
        }
        for (double s : sums) {
          out.push_back(static_cast<float>(s / total));
        }
      }
    }
  }
  return mx::array(out.data(), {q.shape(0), heads, tokens, value_width}, mx::float32);
}

struct Shapes {
  int batch = 1;
  int q_heads = 4;
  int kv_heads = 2;
  int tokens = 1;
  int offset = 0;
  int spare = 0; // rows of the buffer beyond the last token, full of NaN
  int width = 64;
  int value_width = 64;
  int window = 0;
};

Attrs causal(const Shapes& s, bool heads_last = false) {
  return {
      {"scale", 1 / std::sqrt(static_cast<double>(s.width))},
      {"mask", std::string("causal")},
      {"window", int64_t{s.window}},
      {"heads_last", int64_t{heads_last}}};
}

void check(const Shapes& s) {
  SCOPED_TRACE(
      ::testing::Message() << s.q_heads << " heads of " << s.kv_heads << ", " << s.tokens
                           << " tokens at " << s.offset << " + " << s.spare << ", width " << s.width
                           << ", " << s.value_width << ", window " << s.window);
  const int used = s.offset + s.tokens;
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    auto q = random({s.batch, s.q_heads, s.tokens, s.width}, 1, dtype);
    auto keys = random({s.batch, s.kv_heads, used, s.width}, 2, dtype);
    auto values = random({s.batch, s.kv_heads, used, s.value_width}, 3, dtype);
    auto nan = mx::array(NAN, dtype);
    auto grown = [&](const mx::array& x) {
      auto rest = mx::full({s.batch, s.kv_heads, s.spare, x.shape(3)}, nan);
      return mx::concatenate({x, rest}, 2);
    };
    auto& op = op_named("attention");
    Arrays in = {q, grown(keys), grown(values), mx::array(s.offset)};
    auto got = node(op, in, causal(s))[0];
    auto want = by_hand(q, keys, values, s.offset, s.window);
    expect_close(got, want, tolerance_of(dtype));
    in[0] = mx::contiguous(mx::swapaxes(q, 1, 2));
    auto last = node(op, in, causal(s, true))[0];
    EXPECT_TRUE(mx::array_equal(mx::swapaxes(last, 1, 2), got).item<bool>()) << "heads last";
  }
}

TEST(Attention, IsExactForAnyNumberOfTokensAndNeverReadsBeyondTheLast) {
  for (int tokens : {1, 2, 3, 4, 5, 31, 32, 33, 65}) {
    for (int offset : {0, 1, 63, 64, 190}) {
      check({.tokens = tokens, .offset = offset, .spare = 7});
    }
  }
}

TEST(Attention, FillsTheWholeBuffer) {
  check({.tokens = 1, .offset = 127});
  check({.tokens = 64, .offset = 64});
}

TEST(Attention, SharesKvHeadsAmongAnyGroup) {
  for (int group : {1, 2, 3, 5, 7, 8, 9, 16, 17, 64, 71}) {
    check({.q_heads = group, .kv_heads = 1, .offset = 300, .spare = 3, .width = 32});
  }
  check({.batch = 2, .q_heads = 24, .kv_heads = 3, .tokens = 5, .offset = 20, .spare = 1});
}

TEST(Attention, TakesAnyHeadSizes) {
  for (auto [width, value_width] :
       {std::pair{1, 1},
        {31, 33},
        {32, 64},
        {80, 80},
        {96, 128},
        {128, 96},
        {192, 128},
        {256, 256}}) {
    for (int tokens : {1, 11}) {
      check(
          {.tokens = tokens, .offset = 70, .spare = 2, .width = width, .value_width = value_width});
    }
  }
}

TEST(Attention, LooksBackNoFurtherThanItsWindow) {
  for (int window : {1, 2, 31, 64, 65, 1000}) {
    for (int tokens : {1, 3, 70}) {
      check({.tokens = tokens, .offset = 130, .spare = 4, .window = window});
      check({.tokens = tokens, .offset = 0, .spare = 4, .window = window});
    }
  }
}

TEST(Attention, IsExactOverLongContextsWithOneHead) {
  check({.q_heads = 1, .kv_heads = 1, .offset = 5000, .spare = 100, .width = 32});
  check({.q_heads = 4, .kv_heads = 1, .tokens = 9, .offset = 3000, .spare = 1, .width = 32});
}

TEST(Attention, ReadsNothingBeforeItsWindow) {
  Shapes s{.tokens = 1, .offset = 300, .window = 50};
  auto q = random({1, 4, 1, 64}, 1);
  auto keys = random({1, 2, 301, 64}, 2);
  auto values = random({1, 2, 301, 64}, 3);
  auto unseen = mx::less(mx::reshape(mx::arange(301), {1, 1, 301, 1}), mx::array(251));
  auto nan = mx::array(NAN, mx::float32);
  auto got = node(
      op_named("attention"),
      {q, mx::where(unseen, nan, keys), mx::where(unseen, nan, values), mx::array(300)},
      causal(s))[0];
  expect_close(got, by_hand(q, keys, values, 300, 50), tolerance_of(mx::float32));
}

TEST(Attention, ReadsTheBufferSizeWhenItRuns) {
  Shapes s{.tokens = 1, .offset = 600};
  auto& op = op_named("attention");
  auto q = random({1, 4, 1, 64}, 1);
  auto keys = random({1, 2, 1024, 64}, 2);
  auto values = random({1, 2, 1024, 64}, 3);
  auto offset = mx::array(600);
  mx::eval({q, keys, values, offset});
  Types planned = {type_of(q), type_of(keys), type_of(values), type_of(offset)};
  planned[1].shape[2] = planned[2].shape[2] = 256;
  auto out = op.types(planned, causal(s));
  auto kernel = op.cpu(planned, out, causal(s));
  std::vector<float> memory(4 * 64);
  std::vector<std::byte> scratch(kernel.scratch + 64, std::byte{0xFF});
  auto address = (reinterpret_cast<uintptr_t>(scratch.data()) + 63) & ~uintptr_t{63};
  std::vector<Tensor> in;
  for (auto* x : {&q, &keys, &values, &offset}) {
    in.push_back({x->data<char>(), type_of(*x)});
  }
  std::vector<Tensor> to = {{memory.data(), out[0]}};
  Team team(2);
  team.run([&](Member& m) { kernel.run({in, to, reinterpret_cast<std::byte*>(address)}, m); });
  expect_close(
      mx::array(memory.data(), {1, 4, 1, 64}, mx::float32),
      by_hand(q, keys, values, 600, 0),
      tolerance_of(mx::float32));
}

TEST(Attention, TakesMasksThatBroadcast) {
  auto& op = op_named("attention");
  for (int tokens : {2, 33}) {
    auto q = random({2, 4, tokens, 32}, 1);
    auto keys = random({2, 2, 70, 32}, 2);
    auto values = random({2, 2, 70, 32}, 3);
    for (const mx::Shape& shape :
         {mx::Shape{},
          {70},
          {1, 70},
          {tokens, 70},
          {1, 1, 1, 70},
          {4, tokens, 70},
          {2, 1, tokens, 70},
          {2, 4, tokens, 70},
          {2, 4, tokens, 1}}) {
      SCOPED_TRACE(to_string(type_of(mx::zeros(shape))));
      auto mask = random(shape, 4);
      Attrs attrs = {{"scale", 0.2}, {"mask", std::string("array")}};
      for (auto& m : {mask, mx::greater(mask, mx::array(-0.7f))}) {
        Arrays in = {q, keys, values, m};
        expect_close(node(op, in, attrs)[0], op.reference(in, attrs)[0], tolerance_of(mx::float32));
      }
    }
  }
}

TEST(Attention, TreatsRowsMaskedEverywhereAsMlxDoes) {
  auto& op = op_named("attention");
  for (int tokens : {1, 33}) {
    auto q = random({1, 2, tokens, 32}, 1);
    auto keys = random({1, 2, 70, 32}, 2);
    Attrs attrs = {{"scale", 0.2}, {"mask", std::string("array")}};
    // False everywhere: the mean of all values. Minus infinity everywhere: NaN.
    for (auto& mask :
         {mx::zeros({tokens, 70}, mx::bool_), mx::full({tokens, 70}, -INFINITY, mx::float32)}) {
      Arrays in = {q, keys, keys, mask};
      expect_close(node(op, in, attrs)[0], op.reference(in, attrs)[0], tolerance_of(mx::float32));
    }
    // Minus infinity on the first tile only: those keys have no weight.
    auto late =
        mx::where(mx::less(mx::arange(70), mx::array(66)), mx::array(-INFINITY), mx::array(0.0f));
    Arrays in = {q, keys, keys, late};
    expect_close(node(op, in, attrs)[0], op.reference(in, attrs)[0], tolerance_of(mx::float32));
  }
}

TEST(Attention, KeepsItsPrecisionWithLargeScores) {
  Shapes s{.tokens = 1, .offset = 200};
  for (int tokens : {1, 20}) {
    s.tokens = tokens;
    auto q = random({1, 4, tokens, 64}, 1) * mx::array(30.0f);
    auto keys = random({1, 2, 200 + tokens, 64}, 2);
    auto values = random({1, 2, 200 + tokens, 64}, 3);
    auto got = node(op_named("attention"), {q, keys, values, mx::array(200)}, causal(s))[0];
    expect_close(got, by_hand(q, keys, values, 200, 0), 2e-4); // e^x turns 1e-6 of 200 into 2e-4
  }
}

TEST(Attention, PassesNanAndInfinityOn) {
  for (int tokens : {1, 20}) {
    auto q = random({1, 2, tokens, 32}, 1);
    auto keys = random({1, 2, 100, 32}, 2);
    auto values = mx::where(
        mx::equal(mx::reshape(mx::arange(100), {1, 1, 100, 1}), mx::array(40)),
        mx::array(NAN),
        random({1, 2, 100, 32}, 3));
    Attrs attrs = {{"scale", 0.2}, {"mask", std::string("none")}};
    auto got = node(op_named("attention"), {q, keys, values}, attrs)[0];
    EXPECT_TRUE(mx::all(mx::isnan(got)).item<bool>());
  }
}

/// Sequences with these paddings on the left, full of NaN, against each sequence by itself.
void check_padded(const Shapes& s, const std::vector<int>& padding) {
  SCOPED_TRACE(
      ::testing::Message() << s.tokens << " tokens at " << s.offset << ", window " << s.window);
  const int batch = static_cast<int>(padding.size());
  const int used = s.offset + s.tokens;
  auto left = mx::array(padding.data(), {batch}, mx::int32);
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    auto q = random({batch, s.q_heads, s.tokens, s.width}, 1, dtype);
    auto keys = random({batch, s.kv_heads, used, s.width}, 2, dtype);
    auto values = random({batch, s.kv_heads, used, s.value_width}, 3, dtype);
    auto hidden =
        mx::reshape(mx::arange(used), {1, 1, used, 1}) < mx::reshape(left, {batch, 1, 1, 1});
    auto with_nan = [&](const mx::array& x) {
      auto rest = mx::full({batch, s.kv_heads, s.spare, x.shape(3)}, NAN, dtype);
      return mx::concatenate({mx::where(hidden, mx::array(NAN, dtype), x), rest}, 2);
    };
    auto attrs = causal(s);
    attrs.set("padded", int64_t{1});
    Arrays in = {
        q, with_nan(keys), with_nan(values), mx::array(s.offset), mx::array(s.offset) - left};
    auto got = node(op_named("attention"), in, attrs)[0];
    for (int b = 0; b < batch; ++b) {
      // Tokens in the padding come first.
      int blind = std::clamp(padding[static_cast<size_t>(b)] - s.offset, 0, s.tokens);
      int skip = std::min(padding[static_cast<size_t>(b)], used);
      auto of = [&](const mx::array& x, int from, int to) {
        return mx::slice(x, {b, 0, from, 0}, {b + 1, x.shape(1), to, x.shape(3)});
      };
      EXPECT_FALSE(mx::any(of(got, 0, blind) != mx::array(0, dtype)).item<bool>());
      if (blind < s.tokens) {
        auto want = by_hand(
            of(q, blind, s.tokens),
            of(keys, skip, used),
            of(values, skip, used),
            s.offset + blind - skip,
            s.window);
        expect_close(of(got, blind, s.tokens), want, tolerance_of(dtype));
      }
    }
  }
}

TEST(Attention, LeavesOutEachSequencesPadding) {
  for (int tokens : {1, 2, 3, 33, 70}) {
    for (int offset : {0, 5, 64, 300}) {
      check_padded({.tokens = tokens, .offset = offset, .spare = 5}, {0, 3, 64});
    }
  }
  check_padded({.offset = 900, .spare = 3}, {0, 899, 400, 900, 130});
  check_padded({.q_heads = 8, .kv_heads = 1, .offset = 2000}, {1500, 0});
  check_padded({.q_heads = 1, .kv_heads = 1, .offset = 2000, .spare = 2}, {1});
}

TEST(Attention, GivesZerosToTokensThatSeeNoKey) {
  for (int tokens : {1, 4, 40}) {
    check_padded({.tokens = tokens, .offset = 0}, {tokens, tokens - 1, 0});
    check_padded({.tokens = tokens, .offset = 200}, {200 + tokens, 201, 1000});
  }
}

TEST(Attention, LooksBackWithinWindowAndPadding) {
  for (int tokens : {1, 40}) {
    check_padded({.tokens = tokens, .offset = 150, .window = 20}, {0, 140, 152, 170});
  }
}

TEST(Attention, NeedsAPositionForEachPaddedSequence) {
  Shapes s;
  auto attrs = causal(s);
  attrs.set("padded", int64_t{1});
  auto message = [&](const Type& positions) {
    Type q{Dtype::f32, {2, 4, 1, 64}};
    Type keys{Dtype::f32, {2, 2, 8, 64}};
    return message_of([&] {
      op_named("attention").types({q, keys, keys, {Dtype::i32, {}}, positions}, attrs);
    });
  };
  EXPECT_EQ(message({Dtype::i32, {2}}), "");
  EXPECT_EQ(message({Dtype::i32, {3}}), "[attention] positions must have shape (2,) but got (3,).");
  EXPECT_EQ(message({Dtype::f32, {2}}), "[attention] positions must be int32 but got float32.");
  attrs.set("mask", std::string("none"));
  EXPECT_EQ(message({Dtype::i32, {2}}), "[attention] padded=1 needs mask=causal.");
}

TEST(Attention, SaysInWordsWhenTheTokensDoNotFit) {
  Shapes s{.tokens = 3};
  auto q = mx::zeros({1, 4, 3, 64});
  auto keys = mx::zeros({1, 2, 8, 64});
  auto run = [&] {
    mx::eval(node(op_named("attention"), {q, keys, keys, mx::array(6)}, causal(s)));
  };
  EXPECT_EQ(message_of(run), "[attention] positions 6 to 9 must lie in the buffer, which holds 8.");
}

TEST(Attention, HasNoKernelForHeadsWiderThan256) {
  auto& op = op_named("attention");
  Type q{Dtype::f32, {1, 1, 1, 257}};
  Type keys{Dtype::f32, {1, 1, 8, 257}};
  Attrs attrs = {{"scale", 1.0}, {"mask", std::string("none")}};
  EXPECT_FALSE(op.cpu({q, keys, keys}, {q}, attrs).run);
  auto x = random({1, 1, 8, 257}, 1);
  expect_close(
      apply(op, {x, x, x}, attrs)[0], op.reference({x, x, x}, attrs)[0], tolerance_of(mx::float32));
}

} // namespace
} // namespace zmlx
