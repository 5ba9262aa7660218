// zmlx/ops/check.cpp: random inputs for the ops' cases.
#include "zmlx/ops/check.h"

#include "mlx/ops.h"
#include "mlx/random.h"

namespace zmlx {

mx::array random_case(mx::Shape shape, mx::Dtype dtype, uint64_t seed, float scale) {
  auto x = mx::random::normal(shape, mx::float32, 0.0f, scale, mx::random::key(seed));
  return mx::astype(x, dtype);
}

} // namespace zmlx
