// zmlx/ops/add_norm.cpp: a residual added, and the sum normalised: both come out.
#include "mlx/ops.h"
#include "zmlx/kernel/cpu/activate.h"
#include "zmlx/ops/norms.h"

namespace zmlx {
namespace {

CpuKernel kernel(const RowNorm& norm, const Attrs& attrs) {
  const auto eps = static_cast<float>(attrs.real("eps"));
  return {[norm, eps](const Call& call, Member& member) {
    const Tensor& x = call.in[0];
    const int64_t n = x.shape()[-1];
    const int64_t bytes = n * static_cast<int64_t>(size_of(x.dtype()));
    const Range part = member.split(x.shape().rows());
    for (int64_t at = part.begin * bytes; at < part.end * bytes; at += bytes) {
      auto* sum = call.out[1].as<std::byte>() + at;
      cpu::add_row(x.dtype(), x.as<std::byte>() + at, call.in[1].as<std::byte>() + at, n, sum);
      norm_row(call, norm, eps, sum, n, call.out[0].as<std::byte>() + at);
    }
  }};
}

Case example(std::string label, mx::Shape shape, size_t inputs, double eps = 1e-5) {
  return {
      std::move(label),
      [=](mx::Dtype dtype) {
        Arrays in{random_case(shape, dtype, 1, 2), random_case(shape, dtype, 2)};
        for (uint64_t i = 2; i < inputs; ++i) {
          in.push_back(random_case({shape.back()}, dtype, 1 + i));
        }
        return in;
      },
      {{"eps", eps}}};
}

void add(const char* name, const RowNorm& norm) {
  const size_t most = norm.most_inputs();
  OpBuilder(name)
      .args({"x", "residual", norm.layer ? "*weight and bias" : "*weight"})
      .doc(
          std::string("(y, s) for s = x + residual, both [.., N], and y = ") + norm.name() +
          "(s), with weight [N]" + (norm.layer ? " and bias [N]" : "") +
          " where given. s is rounded to the dtype first, so y is the norm of the s that is returned.")
      .function({{"eps", "added to the variance", 1e-5}})
      .types([name, norm](const Types& in, const Attrs&) -> Types {
        expect_norm(name, in, norm);
        expect_dtype(name, "residual", in[1], in[0].dtype);
        expect_shape(name, "residual", in[1], in[0].shape);
        return {in[0], in[0]};
      })
      .reference([norm](const Arrays& in, const Attrs& attrs) -> Arrays {
        auto sum = in[0] + in[1];
        return {norm_reference(sum, in, norm, attrs), sum};
      })
      .gradient([norm](const Gradient& of) {
        auto all = norm_gradient(of, norm, of.outputs[1], of.cotangents[0]);
        all[0] = all[0] + of.cotangents[1];
        all.insert(all.begin(), all[0]);
        return all;
      })
      .cpu([norm](const Types&, const Types&, const Attrs& attrs) { return kernel(norm, attrs); })
      .cases({
          example("row", {1, 2048}, most),
          example("plain", {5, 64}, 2),
          example("tail", {3, 31}, most),
          example("over", {2, 2, 33}, most),
          example("weight", {7, 32}, 3),
          example("one", {5, 1}, most, 0.5),
          example("empty", {0, 8}, most),
      });
}

const bool registered = [] {
  add("add_rms_norm", {false, 2});
  add("add_layer_norm", {true, 2});
  return true;
}();

} // namespace
} // namespace zmlx
