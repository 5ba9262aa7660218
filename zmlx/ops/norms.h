// zmlx/ops/norms.h: RMS norm and layer norm as parts of other ops.
#pragma once

#include "zmlx/kernel/cpu/row_ops.h"
#include "zmlx/kernel/cpu/rows.h"
#include "zmlx/ops/check.h"

namespace zmlx {

/// A norm of rows whose weight, and for a layer norm bias, are an op's inputs from `at` on, where
/// they are given.
struct RowNorm {
  bool layer;
  size_t at;

  const char* name() const {
    return layer ? "layer_norm" : "rms_norm";
  }
  size_t most_inputs() const {
    return at + (layer ? 2 : 1);
  }
};

/// Throws unless there are x and all other inputs before the weight, and weight and bias fit x.
inline void expect_norm(const char* op, const Types& in, const RowNorm& norm) {
  if (in.size() < norm.at || in.size() > norm.most_inputs()) {
    fail(op, "expected ", norm.at, " to ", norm.most_inputs(), " inputs but got ", in.size(), ".");
  }
  expect_rows(op, in[0], 1);
  const char* names[] = {"weight", "bias"};
  for (size_t i = norm.at; i < in.size(); ++i) {
    expect_dtype(op, names[i - norm.at], in[i], in[0].dtype);
    expect_shape(op, names[i - norm.at], in[i], {in[0].shape[-1]});
  }
}

/// x normalised, by the reference of the norm's own op.
inline mx::array
norm_reference(const mx::array& x, const Arrays& in, const RowNorm& norm, const Attrs& attrs) {
  Arrays inputs{x};
  inputs.insert(inputs.end(), in.begin() + static_cast<std::ptrdiff_t>(norm.at), in.end());
  return find_op(norm.name())->reference(inputs, {{"eps", attrs.real("eps")}})[0];
}

/// The cotangents of x, and of weight and bias where given, by the kernel of the norm's gradient.
inline Arrays
norm_gradient(const Gradient& of, const RowNorm& norm, const mx::array& x, const mx::array& dy) {
  Arrays inputs{x, dy};
  auto first = of.inputs.begin() + static_cast<std::ptrdiff_t>(norm.at);
  inputs.insert(inputs.end(), first, of.inputs.end());
  const auto name = std::string(norm.name()) + "_backward";
  return of.apply(name, inputs, {{"eps", of.attrs.real("eps", 1e-5)}});
}

/// One row of n elements normalised; x and out may be the same.
inline void
norm_row(const Call& call, const RowNorm& norm, float eps, const void* x, int64_t n, void* out) {
  const Dtype dtype = call.in[0].dtype();
  auto given = [&](size_t i) -> const void* {
    return i < call.in.size() ? call.in[i].data : nullptr;
  };
  if (norm.layer) {
    cpu::layer_norm_rows(dtype, x, given(norm.at), given(norm.at + 1), eps, 1, n, out);
  } else {
    cpu::rms_norm_row(dtype, x, given(norm.at), eps, out, n);
  }
}

} // namespace zmlx
