// zmlx/ops/norm_backward.cpp: the gradients of RMS norm and layer norm, for rows, weight and bias
// in one pass over the rows.
#include <algorithm>
#include <numeric>

#include "mlx/ops.h"
#include "zmlx/kernel/cpu/norms.h"
#include "zmlx/ops/norms.h"

namespace zmlx {
namespace {

// Parts that the weight's cotangent is summed in: a fixed number, so that it does not depend on the
// number of threads.
constexpr int64_t most_parts = 32;

Arrays reference(const RowNorm& norm, const Arrays& in, const Attrs& attrs) {
  const auto eps = mx::array(static_cast<float>(attrs.real("eps")));
  auto x = mx::astype(in[0], mx::float32);
  auto dy = mx::astype(in[1], mx::float32);
  auto g = in.size() > 2 ? dy * mx::astype(in[2], mx::float32) : dy;
  auto centred = norm.layer ? x - mx::mean(x, -1, true) : x;
  auto inverse = mx::rsqrt(mx::mean(mx::square(centred), -1, true) + eps);
  auto normal = centred * inverse;
  auto rest = norm.layer ? g - mx::mean(g, -1, true) : g;
  auto dx = inverse * (rest - normal * mx::mean(g * normal, -1, true));
  Arrays out{mx::astype(dx, in[0].dtype())};
  for (size_t i = 2; i < in.size(); ++i) {
    std::vector<int> axes(in[0].ndim() - 1);
    std::iota(axes.begin(), axes.end(), 0);
    auto parts = i == 2 ? dy * normal : dy;
    out.push_back(mx::astype(axes.empty() ? parts : mx::sum(parts, axes), in[i].dtype()));
  }
  return out;
}

struct Kernel {
  RowNorm norm;
  float eps;
  int64_t rows;
  int64_t n;
  size_t sums; // of the weight, and of the bias

  int64_t parts() const {
    return std::min(rows, most_parts);
  }
  void operator()(const Call& call, Member& member) const;
};

void Kernel::operator()(const Call& call, Member& member) const {
  const Dtype dtype = call.in[0].dtype();
  const auto bytes = n * static_cast<int64_t>(size_of(dtype));
  const cpu::NormRows of{norm.layer, dtype, call.in.size() > 2 ? call.in[2].data : nullptr, eps, n};
  auto* all = reinterpret_cast<float*>(call.scratch);
  const auto width = static_cast<int64_t>(sums) * n;
  const Range mine = member.split(parts());
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    float* part = all + p * width;
    std::fill_n(part, width, 0.0f);
    const int64_t first = rows * p / parts();
    cpu::norm_backward_rows(
        of,
        call.in[0].as<std::byte>() + first * bytes,
        call.in[1].as<std::byte>() + first * bytes,
        rows * (p + 1) / parts() - first,
        call.out[0].as<std::byte>() + first * bytes,
        sums > 0 ? part : nullptr,
        sums > 1 ? part + n : nullptr);
  }
  if (sums == 0) {
    return;
  }
  member.barrier();
  const Range columns = member.split(n, 16);
  const int64_t count = columns.end - columns.begin;
  constexpr int64_t block = 256;
  float total[block];
  for (size_t s = 0; s < sums; ++s) {
    for (int64_t j = 0; j < count; j += block) {
      const int64_t some = std::min(block, count - j);
      std::fill_n(total, some, 0.0f);
      const int64_t at = columns.begin + j;
      for (int64_t p = 0; p < parts(); ++p) {
        cpu::axpy_row(1, all + p * width + static_cast<int64_t>(s) * n + at, total, some);
      }
      auto* out = call.out[1 + s].as<std::byte>() + at * static_cast<int64_t>(size_of(dtype));
      cpu::store_row(dtype, total, out, some);
    }
  }
}

CpuKernel kernel(const RowNorm& norm, const Types& in, const Attrs& attrs) {
  const Shape& x = in[0].shape;
  const Kernel run{
      norm, static_cast<float>(attrs.real("eps")), x.rows(), x[-1], in.size() - norm.at};
  return {run, static_cast<size_t>(run.parts() * run.n) * run.sums * sizeof(float)};
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
      .args({"x", "dy", norm.layer ? "*weight and bias" : "*weight"})
      .doc(
          std::string("The cotangents of x [.., N]") +
          (norm.layer ? ", weight and bias" : " and weight") +
          " [N], of those that are given, for " + norm.name() +
          "(x) and its cotangent dy, in their dtype. eps: number.")
      .types([name, norm](const Types& in, const Attrs&) -> Types {
        expect_norm(name, in, norm);
        expect_dtype(name, "dy", in[1], in[0].dtype);
        expect_shape(name, "dy", in[1], in[0].shape);
        Types out{in[0]};
        out.insert(out.end(), in.begin() + 2, in.end());
        return out;
      })
      .reference(
          [norm](const Arrays& in, const Attrs& attrs) { return reference(norm, in, attrs); })
      .cpu([norm](const Types& in, const Types&, const Attrs& attrs) {
        return kernel(norm, in, attrs);
      })
      .cases({
          example("rows", {137, 512}, most),
          example("plain", {5, 64}, 2),
          example("weight", {3, 31}, 3),
          example("over", {2, 2, 33}, most),
          example("one", {5, 1}, most, 0.5),
          example("row", {1, 2048}, most),
          example("empty", {0, 8}, most),
      });
}

const bool registered = [] {
  add("rms_norm_backward", {false, 2});
  add("layer_norm_backward", {true, 2});
  return true;
}();

} // namespace
} // namespace zmlx
