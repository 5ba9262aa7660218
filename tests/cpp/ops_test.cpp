// tests/cpp/ops_test.cpp: every op, every case, every dtype: kernel against reference, threads,
// gradients, vmap, strided inputs, and errors in words.
#include "op_testing.h"
#include "zmlx/ops/weight.h"

namespace zmlx {
namespace {

using namespace testing;

/// Calls f(op, case, dtype, inputs) for all ops and cases.
template <typename F>
void for_all(F&& f, bool needs_kernel = true) {
  for (auto* op : all_ops()) {
    for (auto& example : op->cases) {
      for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
        SCOPED_TRACE(op->name + ", " + example.name + ", " + name_of(dtype_of(dtype)));
        auto inputs = example.inputs(dtype);
        auto in = types_of(inputs);
        auto out = op->types(in, example.attrs);
        bool has_kernel = op->cpu && op->cpu(in, out, example.attrs).run;
        if (has_kernel || !needs_kernel) {
          f(*op, example, dtype, inputs);
        }
      }
    }
  }
}

TEST(Ops, HaveNamesDocsAndCases) {
  EXPECT_GE(all_ops().size(), 8u);
  for (auto* op : all_ops()) {
    SCOPED_TRACE(op->name);
    EXPECT_FALSE(op->doc.empty());
    EXPECT_FALSE(op->args.empty());
    EXPECT_GE(op->cases.size(), 3u);
    EXPECT_TRUE(op->types && op->reference);
  }
}

TEST(Ops, KernelsMatchTheirReferencesInFloat32) {
  for_all([](auto& op, auto& example, auto dtype, auto& inputs) {
    auto got = node(op, inputs, example.attrs);
    auto want = op.reference(in_float32(inputs), example.attrs);
    mx::eval(got);
    ASSERT_EQ(got.size(), want.size());
    auto types = op.types(types_of(inputs), example.attrs);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_EQ(to_string(type_of(got[i])), to_string(types[i]));
    }
    got = comparable(got, dtype);
    want = comparable(want, dtype);
    for (size_t i = 0; i < got.size(); ++i) {
      SCOPED_TRACE("output " + std::to_string(i));
      expect_close(got[i], want[i], tolerance_of(dtype));
    }
  });
}

TEST(Ops, ReferencesHaveTheTypesThatTypesPromises) {
  for_all(
      [](auto& op, auto& example, auto, auto& inputs) {
        auto types = op.types(types_of(inputs), example.attrs);
        auto outputs = op.reference(inputs, example.attrs);
        ASSERT_EQ(outputs.size(), types.size());
        for (size_t i = 0; i < outputs.size(); ++i) {
          EXPECT_EQ(to_string(type_of(outputs[i])), to_string(types[i]));
        }
      },
      false);
}

TEST(Ops, GiveTheSameBitsForAnyNumberOfThreads) {
  Team one(1);
  Team two(2);
  Team three(3);
  for_all([&](auto& op, auto& example, auto, auto& inputs) {
    auto a = run_kernel(op, inputs, example.attrs, one);
    EXPECT_TRUE(a == run_kernel(op, inputs, example.attrs, two)) << "2 threads";
    EXPECT_TRUE(a == run_kernel(op, inputs, example.attrs, three)) << "3 threads";
    EXPECT_TRUE(a == run_kernel(op, inputs, example.attrs, one)) << "again";
  });
}

TEST(Ops, AcceptStridedInputs) {
  for_all([](auto& op, auto& example, auto, auto& inputs) {
    Arrays strided;
    for (auto& x : inputs) {
      bool matrix = x.ndim() >= 2;
      strided.push_back(matrix ? mx::swapaxes(mx::contiguous(mx::swapaxes(x, -1, -2)), -1, -2) : x);
    }
    auto a = node(op, inputs, example.attrs);
    auto b = node(op, strided, example.attrs);
    mx::eval(a);
    mx::eval(b);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(mx::array_equal(a[i], b[i], true).template item<bool>()) << "output " << i;
    }
  });
}

TEST(Ops, LeaveTheirInputsAlone) {
  for_all([](auto& op, auto& example, auto, auto& inputs) {
    Arrays before;
    for (auto& x : inputs) {
      before.push_back(mx::copy(x));
    }
    mx::eval(before);
    mx::eval(node(op, inputs, example.attrs));
    for (size_t i = 0; i < inputs.size(); ++i) {
      EXPECT_TRUE(mx::array_equal(inputs[i], before[i]).template item<bool>()) << "input " << i;
    }
  });
}

/// The floating outputs' gradients with respect to the given inputs.
Arrays gradients(
    const std::function<Arrays(const Arrays&)>& f,
    const Arrays& inputs,
    std::vector<size_t> which) {
  Arrays primals;
  for (size_t i : which) {
    primals.push_back(inputs[i]);
  }
  auto of_primals = [&](const Arrays& chosen) {
    Arrays all = inputs;
    for (size_t i = 0; i < which.size(); ++i) {
      all[which[i]] = chosen[i];
    }
    Arrays smooth;
    for (auto& y : f(all)) {
      if (floating(y)) {
        smooth.push_back(y);
      }
    }
    return smooth;
  };
  Arrays cotangents;
  for (auto& y : of_primals(primals)) {
    cotangents.push_back(
        mx::cos(mx::reshape(mx::arange(static_cast<double>(y.size()), y.dtype()), y.shape())));
  }
  auto out = mx::vjp(of_primals, primals, cotangents).second;
  mx::eval(out);
  return out;
}

TEST(Ops, HaveTheirReferencesGradients) {
  for_all([](auto& op, auto& example, auto dtype, auto& inputs) {
    if (dtype != mx::float32 || inputs[0].size() == 0) {
      return;
    }
    std::vector<size_t> which;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (floating(inputs[i])) {
        which.push_back(i);
      }
    }
    auto reference = [&](const Arrays& in) { return op.reference(in, example.attrs); };
    auto fused = [&](const Arrays& in) { return node(op, in, example.attrs); };
    while (!which.empty()) {
      Arrays want;
      try {
        want = gradients(reference, inputs, which);
      } catch (const std::exception&) {
        // MLX has no gradient with respect to some input (scales of a quantised weight): try fewer.
        which.pop_back();
        continue;
      }
      auto got = gradients(fused, inputs, which);
      for (size_t i = 0; i < want.size(); ++i) {
        SCOPED_TRACE("input " + std::to_string(which[i]));
        expect_close(got[i], want[i], tolerance_of(dtype));
      }
      return;
    }
  });
}

TEST(Ops, CanBeMappedOverABatch) {
  for_all([](auto& op, auto& example, auto dtype, auto& inputs) {
    if (dtype != mx::float32 || !floating(inputs[0]) || inputs[0].size() == 0) {
      return;
    }
    auto twice = inputs;
    twice[0] = mx::stack({inputs[0], inputs[0] * mx::array(0.5f)});
    std::vector<int> in_axes(inputs.size(), -1);
    in_axes[0] = 0;
    std::vector<int> out_axes(op.types(types_of(inputs), example.attrs).size(), 0);
    auto reference = [&](const Arrays& in) { return op.reference(in, example.attrs); };
    auto fused = [&](const Arrays& in) { return node(op, in, example.attrs); };
    Arrays want;
    try {
      want = mx::vmap(reference, in_axes, out_axes)(twice);
      mx::eval(want);
    } catch (const std::exception&) {
      return; // MLX cannot map the reference itself.
    }
    auto got = mx::vmap(fused, in_axes, out_axes)(twice);
    for (size_t i = 0; i < want.size(); ++i) {
      expect_close(got[i], want[i], tolerance_of(dtype));
    }
  });
}

struct Mistake {
  const char* op;
  Types in;
  Attrs attrs;
  const char* message;
};

const Type f32_vector = {Dtype::f32, {8}};
const Type one = {Dtype::i32, {}};

Attrs with(Attrs attrs, const char* name, Attr value) {
  return attrs.set(name, std::move(value));
}

const Attrs rope_attrs = {{"dims", int64_t{8}}};
const Attrs heads = {
    {"q_heads", int64_t{4}},
    {"kv_heads", int64_t{2}},
    {"dims", int64_t{8}},
    {"eps", 1e-6}};
const Attrs causal = {{"scale", 1.0}, {"mask", std::string("causal")}};
const Attrs masked = {{"scale", 1.0}, {"mask", std::string("array")}};
const Attrs unmasked = {{"scale", 1.0}, {"mask", std::string("none")}};

Type f32(Shape shape) {
  return {Dtype::f32, shape};
}

Types rope_kv(Type q, Type k, Type keys, Type values) {
  return {q, k, f32({1, 3, 16}), f32({4}), one, keys, values};
}

const Mistake mistakes[] = {
    {"rms_norm", {}, {}, "[rms_norm] expected 1 or 2 inputs but got 0."},
    {"rms_norm",
     {{Dtype::i32, {8}}, f32_vector},
     {},
     "[rms_norm] x must be float32, float16 or bfloat16 but got int32."},
    {"rms_norm",
     {f32({}), f32({})},
     {},
     "[rms_norm] x must have at least 1 axis but got a number."},
    {"rms_norm",
     {{Dtype::f16, {2, 8}}, f32_vector},
     {},
     "[rms_norm] weight must be float16 but got float32."},
    {"rms_norm",
     {f32({2, 9}), f32_vector},
     {},
     "[rms_norm] weight must have shape (9,) but got (8,)."},
    {"mlp",
     {},
     weight_attrs(0, 0, {{"activation", std::string("gelu")}, {"exact", int64_t{1}}}),
     "[mlp] exact=1 needs activation silu but got gelu."},
    {"add_rms_norm", {f32({8})}, {}, "[add_rms_norm] expected 2 to 3 inputs but got 1."},
    {"add_rms_norm",
     {f32({8}), f32({9})},
     {},
     "[add_rms_norm] residual must have shape (8,) but got (9,)."},
    {"add_layer_norm",
     {f32({8}), f32({8}), f32({8}), f32({1})},
     {},
     "[add_layer_norm] bias must have shape (8,) but got (1,)."},
    {"layer_norm_dropout",
     {f32({8}), f32({2}), f32({})},
     {},
     "[dropout] key must be uint32 but got float32."},
    {"rms_norm_dropout",
     {f32({8}), {Dtype::u32, {2}}, f32({}), {Dtype::f16, {8}}},
     {},
     "[rms_norm_dropout] weight must be float32 but got float16."},
    {"glu",
     {f32({8}), f32({16})},
     {{"activation", std::string("gelu")}},
     "[glu] up must have shape (8,) but got (16,)."},
    {"glu",
     {},
     {{"activation", std::string("gelu")}},
     "[glu] expected x, or a gate and what it multiplies, but got 0 inputs."},
    {"swiglu", {f32({8}), f32({16})}, {}, "[swiglu] up must have shape (8,) but got (16,)."},
    {"swiglu", {f32({8}), {Dtype::bf16, {8}}}, {}, "[swiglu] up must be float32 but got bfloat16."},
    {"swiglu",
     {{Dtype::u8, {8}}, {Dtype::u8, {8}}},
     {},
     "[swiglu] gate must be float32, float16 or bfloat16 but got uint8."},
    {"rope",
     {f32({1, 2, 8}), one, f32({4})},
     rope_attrs,
     "[rope] x must have 4 axes but got float32(1, 2, 8)."},
    {"rope",
     {f32({1, 2, 3, 8}), {Dtype::f32, {}}, f32({4})},
     rope_attrs,
     "[rope] offset must be int32 but got float32."},
    {"rope",
     {f32({1, 2, 3, 8}), {Dtype::i32, {2}}, f32({4})},
     rope_attrs,
     "[rope] offset must be one number but got shape (2,)."},
    {"rope",
     {f32({2, 2, 3, 8}), f32({2}), f32({4})},
     rope_attrs,
     "[rope] offset must be int32 but got float32."},
    {"rope",
     {f32({1, 2, 3, 8}), one, f32({8})},
     rope_attrs,
     "[rope] inv_freq must have shape (4,) but got (8,)."},
    {"rope",
     {f32({1, 2, 3, 6}), one, f32({4})},
     rope_attrs,
     "[rope] dims must be even and lie between 2 and 6 but got 8."},
    {"kv_update",
     {f32({1, 2, 8, 4}), f32({1, 2, 9, 4}), one},
     {},
     "[kv_update] x must be rows of a buffer (1, 2, 8, 4) but got shape (1, 2, 9, 4)."},
    {"kv_update",
     {f32({1, 2, 8, 4}), {Dtype::f16, {1, 2, 1, 4}}, one},
     {},
     "[kv_update] x must be float32 but got float16."},
    {"causal_mask",
     {one},
     {{"tokens", int64_t{-1}}, {"capacity", int64_t{4}}},
     "[causal_mask] tokens, capacity and window must not be negative but got capacity=4, tokens=-1."},
    {"causal_mask",
     {one, one},
     {{"tokens", int64_t{1}}, {"capacity", int64_t{4}}, {"padded", int64_t{1}}},
     "[causal_mask] positions must have 1 axes but got int32()."},
    {"causal_mask",
     {one},
     {{"tokens", int64_t{1}}, {"capacity", int64_t{4}}, {"padded", int64_t{1}}},
     "[causal_mask] expected 2 inputs but got 1."},
    {"attention",
     {f32({1, 3, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})},
     unmasked,
     "[attention] query heads must be a multiple of KV heads but got 3 and 2."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 16}), f32({1, 2, 4, 8})},
     unmasked,
     "[attention] keys must have shape (1, 2, 4, 8) but got (1, 2, 4, 16)."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 5, 8})},
     unmasked,
     "[attention] values must have shape (1, 2, 4, 8) but got (1, 2, 5, 8)."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 0, 8}), f32({1, 2, 0, 8})},
     unmasked,
     "[attention] keys must have at least one row."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})},
     causal,
     "[attention] expected 4 inputs but got 3."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})},
     with(unmasked, "window", int64_t{3}),
     "[attention] window must be positive and needs mask=causal but got 3."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})},
     with(unmasked, "mask", std::string("some")),
     "[attention] mask must be none, causal or array but got some."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8}), f32({1, 3})},
     masked,
     "[attention] mask must broadcast to (1, 2, 1, 4) but got shape (1, 3)."},
    {"attention",
     {f32({1, 2, 1, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8}), {Dtype::i32, {1, 4}}},
     masked,
     "[attention] mask must be bool or float32 but got int32."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), f32({1, 3, 8}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})),
     heads,
     "[rope_kv_update] k must have shape (1, 3, 16) but got (1, 3, 8)."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), f32({1, 3, 16}), f32({1, 2, 4, 8}), f32({1, 2, 5, 8})),
     heads,
     "[rope_kv_update] values must have shape (1, 2, 4, 8) but got (1, 2, 5, 8)."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), f32({1, 3, 16}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})),
     with(heads, "kv_heads", int64_t{3}),
     "[rope_kv_update] q_heads must be a multiple of kv_heads but got 4 and 3."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), f32({1, 3, 16}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})),
     with(heads, "norm", int64_t{1}),
     "[rope_kv_update] expected 9 inputs but got 7."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), f32({1, 3, 16}), f32({1, 2, 4, 8}), f32({1, 2, 4, 8})),
     with(heads, "padded", int64_t{1}),
     "[rope_kv_update] expected 8 inputs but got 7."},
    {"rope_kv_update",
     rope_kv(f32({1, 3, 32}), {Dtype::f16, {1, 3, 16}}, f32({1, 2, 4, 8}), f32({1, 2, 4, 8})),
     heads,
     "[rope_kv_update] k must be float32 but got float16."},
};

TEST(Ops, SayInWordsWhatDoesNotFit) {
  for (auto& mistake : mistakes) {
    auto& op = op_named(mistake.op);
    EXPECT_EQ(message_of([&] { op.types(mistake.in, mistake.attrs); }), mistake.message);
  }
  EXPECT_EQ(message_of([] { op_named("no_such"); }), "[zmlx] there is no op named 'no_such'.");
}

TEST(Ops, SayInWordsWhenRowsDoNotFitABuffer) {
  auto buffer = mx::zeros({1, 2, 8, 4});
  auto rows = mx::zeros({1, 2, 3, 4});
  for (auto [offset, text] : {std::pair{6, "6 to 9"}, std::pair{-1, "-1 to 2"}}) {
    auto message = message_of([&, at = offset] {
      mx::eval(node(op_named("kv_update"), {buffer, rows, mx::array(at)}));
    });
    EXPECT_EQ(
        message,
        std::string("[kv_update] positions ") + text + " must lie in the buffer, which holds 8.");
  }
}

} // namespace
} // namespace zmlx
