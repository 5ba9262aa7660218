// zmlx/plan/flight.h: whether a run may write a state in place: who holds its memory, runs that are
// under way set aside.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <vector>

#include "mlx/array.h"

namespace zmlx {

namespace mx = mlx::core;

/// A run that has been queued: MLX keeps one reference to each of its buffers until shortly after
/// it has run.
struct Flight {
  std::vector<const void*> buffers;
  std::atomic<bool> landed{false};
};

/// Notes a run with these outputs; set `landed` when it has run.
std::shared_ptr<Flight> take_off(const std::vector<mx::array>& outputs);

/// Whether only this run's input list and runs still in flight hold the array's memory. A run that
/// has just landed may keep its reference for a moment longer: then the answer is waited for, until
/// `deadline`. `output` is where a run before this one may have had it among its outputs.
bool is_exclusive(
    const mx::array& a,
    size_t output,
    std::chrono::steady_clock::time_point deadline);

/// The deadline of a run that is queued now.
std::chrono::steady_clock::time_point landing_deadline();

} // namespace zmlx
