// tests/cpp/rope_test.cpp: rotation at far positions and in place in the KV buffers.
#include "op_testing.h"

namespace zmlx {
namespace {

using namespace testing;

mx::array random(mx::Shape shape, uint64_t seed, mx::Dtype dtype = mx::float32) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), dtype);
}

mx::array frequencies(int dims, float base) {
  std::vector<float> f;
  for (int i = 0; i < dims / 2; ++i) {
    f.push_back(std::pow(base, -2.0f * static_cast<float>(i) / static_cast<float>(dims)));
  }
  return mx::array(f.data(), {dims / 2}, mx::float32);
}

TEST(Rope, IsExactAtFarPositions) {
  const int dims = 64;
  auto inv_freq = frequencies(dims, 1e6f);
  auto f = floats(inv_freq);
  auto x = random({1, 2, 3, dims}, 1);
  auto in = floats(x);
  for (int offset : {0, 1, 1000, 65535, 262144, 999999, 1000000}) {
    SCOPED_TRACE(offset);
    std::vector<float> want(in.size());
    for (size_t h = 0; h < 2; ++h) {
      for (size_t t = 0; t < 3; ++t) {
        const size_t at = (h * 3 + t) * dims;
        for (size_t i = 0; i < dims / 2; ++i) {
          // The angle is float32, as in MLX; its cosine and sine are those of that number.
          double angle = (static_cast<float>(offset) + static_cast<float>(t)) * f[i];
          double a = in[at + i];
          double b = in[at + i + dims / 2];
          want[at + i] = static_cast<float>(a * std::cos(angle) - b * std::sin(angle));
          want[at + i + dims / 2] = static_cast<float>(a * std::sin(angle) + b * std::cos(angle));
        }
      }
    }
    auto got =
        node(op_named("rope"), {x, mx::array(offset), inv_freq}, {{"dims", int64_t{dims}}})[0];
    expect_close(got, mx::array(want.data(), x.shape(), mx::float32), 1e-6);
  }
}

TEST(Rope, IsMlxOwnRope) {
  auto x = random({1, 2, 5, 80}, 1);
  for (bool traditional : {false, true}) {
    for (float scale : {1.0f, 0.25f}) {
      Attrs attrs = {
          {"dims", int64_t{64}}, {"traditional", int64_t{traditional}}, {"scale", double{scale}}};
      auto freqs = mx::reciprocal(frequencies(64, 1e4f));
      auto want = mx::fast::rope(x, 64, traditional, std::nullopt, scale, 17, freqs);
      Arrays in = {x, mx::array(17), mx::reciprocal(freqs)};
      expect_close(node(op_named("rope"), in, attrs)[0], want, tolerance_of(mx::float32));
      expect_close(op_named("rope").reference(in, attrs)[0], want, 1e-7);
    }
  }
}

TEST(Rope, OfHalvesRoundsAsMlxDoesWhenExact) {
  for (auto dtype : {mx::float16, mx::bfloat16}) {
    auto x = random({1, 2, 33, 64}, 1, dtype);
    Arrays in = {x, mx::array(100), frequencies(64, 1e4f)};
    Attrs attrs = {{"dims", int64_t{64}}, {"exact", int64_t{1}}};
    auto got = node(op_named("rope"), in, attrs)[0];
    EXPECT_TRUE(mx::array_equal(got, op_named("rope").reference(in, attrs)[0]).item<bool>());
  }
}

TEST(Rope, TurnsEachSequenceByItsOwnOffset) {
  auto x = random({3, 2, 5, 64}, 1);
  auto freqs = mx::reciprocal(frequencies(64, 1e4f));
  auto inv_freq = mx::reciprocal(freqs);
  Attrs attrs = {{"dims", int64_t{64}}};
  int offsets[] = {7, -3, 4096};
  auto vector = mx::array(offsets, {3}, mx::int32);
  auto got = node(op_named("rope"), {x, vector, inv_freq}, attrs)[0];
  expect_close(got, mx::fast::rope(x, 64, false, std::nullopt, 1.0f, vector, freqs), 2e-5);
  for (int b = 0; b < 3; ++b) {
    auto of = [&](const mx::array& a) { return mx::slice(a, {b, 0, 0, 0}, {b + 1, 2, 5, 64}); };
    auto alone = node(op_named("rope"), {of(x), mx::array(offsets[b]), inv_freq}, attrs)[0];
    EXPECT_TRUE(mx::array_equal(of(got), alone).item<bool>()) << "sequence " << b;
  }
}

struct Step {
  Arrays inputs;
  Attrs attrs;
};

Step step(int tokens, int capacity, int offset, bool exact, mx::Dtype dtype) {
  const int width = 64;
  return {
      {random({1, tokens, 4 * width}, 1, dtype),
       random({1, tokens, 2 * width}, 2, dtype),
       random({1, tokens, 2 * width}, 3, dtype),
       random({width}, 4, dtype),
       random({width}, 5, dtype),
       frequencies(width, 1e4f),
       mx::array(offset),
       random({1, 2, capacity, width}, 6, dtype),
       random({1, 2, capacity, width}, 7, dtype)},
      {{"q_heads", int64_t{4}},
       {"kv_heads", int64_t{2}},
       {"norm", int64_t{1}},
       {"eps", 1e-6},
       {"dims", int64_t{width}},
       {"exact", int64_t{exact}}}};
}

TEST(RopeKvUpdate, RoundsAsTheUnfusedGraphWhenExact) {
  auto& op = op_named("rope_kv_update");
  for (auto dtype : {mx::float16, mx::bfloat16}) {
    auto [in, attrs] = step(7, 20, 9, true, dtype);
    auto got = node(op, in, attrs);
    auto want = op.reference(in, attrs);
    for (size_t i = 0; i < 3; ++i) {
      // The sum of squares is taken in another order: one rounding may fall the other way.
      auto a = floats(got[i]);
      auto b = floats(want[i]);
      size_t different = 0;
      for (size_t j = 0; j < a.size(); ++j) {
        different += a[j] != b[j];
      }
      EXPECT_LE(different, a.size() / 200) << "output " << i;
    }
  }
}

TEST(RopeKvUpdate, WritesTheNewRowsAndNoOthers) {
  auto& op = op_named("rope_kv_update");
  auto [in, attrs] = step(3, 16, 5, false, mx::bfloat16);
  auto out = node(op, in, attrs);
  for (size_t i : {size_t{1}, size_t{2}}) {
    auto before = floats(in[6 + i]);
    auto after = floats(out[i]);
    for (size_t j = 0; j < before.size(); ++j) {
      size_t row = j / 64 % 16;
      if (row < 5 || row >= 8) {
        ASSERT_EQ(before[j], after[j]) << "row " << row;
      } else {
        ASSERT_NE(before[j], after[j]) << "row " << row;
      }
    }
  }
}

TEST(RopeKvUpdate, WritesPaddedSequencesToOneRowTurnedByTheirOwnPositions) {
  auto& op = op_named("rope_kv_update");
  auto [in, attrs] = step(3, 16, 5, false, mx::float32);
  auto alone = node(op, in, attrs);
  for (size_t i : {size_t{0}, size_t{1}, size_t{2}, size_t{7}, size_t{8}}) {
    in[i] = mx::concatenate({in[i], in[i]}, 0);
  }
  int positions[] = {5, -1};
  in.insert(in.begin() + 7, mx::array(positions, {2}, mx::int32));
  attrs.set("padded", int64_t{1});
  auto got = node(op, in, attrs);
  for (size_t i = 0; i < 3; ++i) {
    expect_close(got[i], op.reference(in, attrs)[i], tolerance_of(mx::float32));
    auto first = mx::split(got[i], 2, 0)[0];
    EXPECT_TRUE(mx::array_equal(first, alone[i]).item<bool>()) << "output " << i;
  }
  // The other sequence stands elsewhere: only its values, which are not turned, are the same.
  for (size_t i = 0; i < 3; ++i) {
    auto second = mx::split(got[i], 2, 0)[1];
    EXPECT_EQ(mx::array_equal(second, alone[i]).item<bool>(), i == 2) << "output " << i;
  }
}

TEST(RopeKvUpdate, SaysInWordsWhenTheRowsDoNotFit) {
  auto [in, attrs] = step(3, 16, 14, false, mx::float32);
  auto message = message_of(
      [&, &inputs = in, &a = attrs] { mx::eval(node(op_named("rope_kv_update"), inputs, a)); });
  EXPECT_EQ(message, "[rope_kv_update] positions 14 to 17 must lie in the buffer, which holds 16.");
}

} // namespace
} // namespace zmlx
