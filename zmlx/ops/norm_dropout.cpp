// zmlx/ops/norm_dropout.cpp: rows normalised, then elements dropped at random, in one pass.
#include "mlx/ops.h"
#include "mlx/random.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/ops/dropout.h"
#include "zmlx/ops/norms.h"

namespace zmlx {
namespace {

void run(const char* name, const RowNorm& norm, float eps, const Call& call, Member& member) {
  const Tensor& x = call.in[0];
  const Dtype dtype = x.dtype();
  const float p = *call.in[2].as<float>();
  if (!(p >= 0 && p <= 1)) {
    fail(name, "p must be from 0 to 1 but got ", p, ".");
  }
  const int64_t n = x.shape()[-1];
  const int64_t rows = x.shape().rows();
  const int64_t bytes = n * static_cast<int64_t>(size_of(dtype));
  auto normalise = [&](int64_t r) {
    const auto* from = x.as<std::byte>() + r * bytes;
    norm_row(call, norm, eps, from, n, call.out[0].as<std::byte>() + r * bytes);
  };
  auto drop = [&](int64_t first, int64_t last) {
    auto* out = call.out[0].data;
    cpu::dropout_pairs(dtype, out, call.in[1].as<uint32_t>(), p, rows * n, first, last, out);
  };
  // Random words come in pairs half the array apart: of an even number of rows, whole rows are
  // pairs, and both are still in the cache.
  if (rows % 2 == 0) {
    const Range part = member.split(rows / 2);
    for (int64_t r = part.begin; r < part.end; ++r) {
      normalise(r);
      normalise(r + rows / 2);
      drop(r * n, (r + 1) * n);
    }
    return;
  }
  const Range mine = member.split(rows);
  for (int64_t r = mine.begin; r < mine.end; ++r) {
    normalise(r);
  }
  member.barrier();
  const Range part = member.split(cpu::pair_count(rows * n), 64);
  drop(part.begin, part.end);
}

Case example(std::string label, mx::Shape shape, size_t inputs, float p, double eps = 1e-5) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in{random_case(shape, dtype, 1, 2), mx::random::key(7), mx::array(p, mx::float32)};
        for (uint64_t i = 3; i < inputs; ++i) {
          in.push_back(random_case({shape.back()}, dtype, 1 + i));
        }
        return in;
      },
      {{"eps", eps}}};
}

void add(const char* name, const RowNorm& norm) {
  const size_t most = norm.most_inputs();
  OpBuilder(name)
      .args({"x", "key", "p", norm.layer ? "*weight and bias" : "*weight"})
      .doc(
          std::string("dropout(") + norm.name() +
          "(x), p, key) for x [.., N] in one pass, with weight [N]" +
          (norm.layer ? " and bias [N]" : "") +
          " where given: what the two ops give one after the other, with the same mask. key: uint32 "
          "[2]; p: one float32 from 0 to 1.")
      .types([name, norm](const Types& in, const Attrs&) -> Types {
        expect_norm(name, in, norm);
        find_op("dropout")->types({in[0], in[1], in[2]}, {});
        return {in[0]};
      })
      .reference([norm](const Arrays& in, const Attrs& attrs) -> Arrays {
        auto normed = norm_reference(in[0], in, norm, attrs);
        return find_op("dropout")->reference({normed, in[1], in[2]}, {});
      })
      .gradient([norm](const Gradient& of) {
        auto &key = of.inputs[1], &p = of.inputs[2];
        // The mask again, from the same key.
        auto dy = of.apply("dropout", {of.cotangents[0], key, p}, {})[0];
        auto all = norm_gradient(of, norm, of.inputs[0], dy);
        all.insert(all.begin() + 1, {key, dropout_gradient(of, p)});
        return all;
      })
      .cpu([name, norm](const Types& in, const Types&, const Attrs& attrs) -> CpuKernel {
        // The random words' counters are 32 bits.
        if (in[0].shape.size() >= int64_t{1} << 32) {
          return {};
        }
        const auto eps = static_cast<float>(attrs.real("eps"));
        return {[name, norm, eps](const Call& call, Member& member) {
          run(name, norm, eps, call, member);
        }};
      })
      .cases({
          example("rows", {38, 512}, most, 0.5f),
          example("odd rows", {37, 64}, most, 0.1f),
          example("plain", {5, 31}, 3, 0.5f),
          example("over", {2, 33}, 4, 0.25f),
          example("one", {1, 1}, most, 0.5f, 0.5),
          example("all", {3, 32}, most, 1),
          example("empty", {0, 8}, most, 0.5f),
      });
}

const bool registered = [] {
  add("rms_norm_dropout", {false, 3});
  add("layer_norm_dropout", {true, 3});
  return true;
}();

} // namespace
} // namespace zmlx
