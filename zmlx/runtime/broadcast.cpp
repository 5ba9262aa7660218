// zmlx/runtime/broadcast.cpp: shapes from the last axis on.
#include "zmlx/runtime/broadcast.h"

#include "mlx/ops.h"
#include "zmlx/graph/capture.h"
#include "zmlx/runtime/error.h"
#include "zmlx/runtime/map_reduce.h"

namespace zmlx {

static std::string shapes_of(const std::vector<mx::array>& arrays) {
  std::string text;
  for (auto& a : arrays) {
    text += (text.empty() ? "" : ", ") + to_string(type_of(a).shape);
  }
  return text;
}

mx::Shape common_shape(const std::string& name, const std::vector<mx::array>& inputs) {
  mx::Shape shape;
  for (auto& x : inputs) {
    if (x.ndim() > shape.size()) {
      shape.insert(shape.begin(), x.ndim() - shape.size(), 1);
    }
    for (size_t i = 0; i < x.ndim(); ++i) {
      auto& out = shape[shape.size() - x.ndim() + i];
      int dim = x.shape(static_cast<int>(i));
      if (out != dim && out != 1 && dim != 1) {
        fail(name.c_str(), "shapes must broadcast but got ", shapes_of(inputs), ".");
      }
      out = out == 1 ? dim : out;
    }
  }
  return shape;
}

/// On a CPU by threads and in double precision.
static mx::array summed(const mx::array& x, const std::vector<int>& axes, mx::StreamOrDevice s) {
  static const MapReduce sum({"sum", {"x"}, {lang::input("x")}}, "sum");
  bool on_cpu = mx::to_stream(s).device == mx::Device::cpu;
  return on_cpu ? sum({x}, axes, true, {}, s) : mx::sum(x, axes, true, s);
}

mx::array fitted(mx::array x, const mx::Shape& shape, mx::StreamOrDevice s) {
  std::vector<int> axes;
  size_t extra = x.ndim() - shape.size();
  for (size_t i = 0; i < x.ndim(); ++i) {
    if (i < extra || (shape[i - extra] == 1 && x.shape(static_cast<int>(i)) != 1)) {
      axes.push_back(static_cast<int>(i));
    }
  }
  if (!axes.empty()) {
    x = summed(x, axes, s);
    x = mx::reshape(x, {x.shape().begin() + static_cast<int64_t>(extra), x.shape().end()}, s);
  }
  return mx::broadcast_to(x, shape, s);
}

std::vector<mx::array>
batched(const std::vector<mx::array>& inputs, const std::vector<int>& axes, mx::StreamOrDevice s) {
  size_t rank = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    rank = std::max(rank, inputs[i].ndim() - (axes[i] >= 0));
  }
  auto moved = inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (axes[i] >= 0) {
      auto x = mx::moveaxis(inputs[i], axes[i], 0, s);
      auto shape = x.shape();
      shape.insert(shape.begin() + 1, rank + 1 - shape.size(), 1);
      moved[i] = mx::reshape(x, shape, s);
    }
  }
  return moved;
}

Strides strides_in(const Shape& shape, const mx::array& x) {
  Strides strides(static_cast<size_t>(shape.rank()), 0);
  size_t extra = strides.size() - x.ndim();
  for (size_t a = 0; a < x.ndim(); ++a) {
    strides[extra + a] = x.shape(static_cast<int>(a)) == 1 ? 0 : x.strides()[a];
  }
  return strides;
}

Axes joined(const Shape& shape, const std::vector<Strides>& strides) {
  Axes out{{}, std::vector<Strides>(strides.size())};
  for (int axis = 0; axis < shape.rank(); ++axis) {
    int64_t extent = shape[axis];
    auto at = static_cast<size_t>(axis);
    if (extent == 1) {
      continue;
    }
    bool even = !out.extents.empty();
    for (size_t i = 0; i < strides.size() && even; ++i) {
      even = out.strides[i].back() == strides[i][at] * extent;
    }
    if (even) {
      out.extents.back() *= extent;
    } else {
      out.extents.push_back(extent);
    }
    for (size_t i = 0; i < strides.size(); ++i) {
      if (even) {
        out.strides[i].back() = strides[i][at];
      } else {
        out.strides[i].push_back(strides[i][at]);
      }
    }
  }
  return out;
}

} // namespace zmlx
