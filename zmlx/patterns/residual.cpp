// zmlx/patterns/residual.cpp: one shape of rewrite for every op with a residual.
#include "zmlx/patterns/residual.h"

#include "mlx/ops.h"
#include "zmlx/patterns/weights.h"

namespace zmlx {
namespace {

mx::array result(const char* op, const Arrays& v, const Attrs& attrs) {
  return call(op, {v.begin(), v.end() - 1}, attrs)[0];
}

} // namespace

Build plus_residual(const char* op) {
  return
      [op](const Arrays& v, const Attrs& attrs) { return Arrays{v.back() + result(op, v, attrs)}; };
}

std::function<std::optional<Attrs>(const Match&)> without_residual(const char* op) {
  return [op](const Match& match) {
    auto& attrs = match.node(op).attrs;
    bool fits = !attrs.integer("residual", 0) && attrs.integer("outputs", 1) == 1;
    return fits ? std::optional(attrs) : std::nullopt;
  };
}

Build with_residual(const char* op) {
  return [op](const Arrays& v, const Attrs& attrs) {
    return call(op, v, with(attrs, {{"residual", int64_t{1}}}));
  };
}

Build residual_less(const char* op) {
  return
      [op](const Arrays& v, const Attrs& attrs) { return Arrays{v.back() - result(op, v, attrs)}; };
}

Build residual_and_result(const char* op) {
  return [op](const Arrays& v, const Attrs& attrs) {
    auto y = result(op, v, attrs);
    return Arrays{v.back() + y, mx::abs(y)};
  };
}

} // namespace zmlx
