// zmlx/runtime/bandwidth.h: what this machine's memory and thread team can do at best.
#pragma once

#include <cstddef>

namespace zmlx {

/// Bytes a second that the thread team reads from a buffer of `bytes`, the best of `repeats`
/// passes.
double read_bandwidth(size_t bytes, int repeats);

/// Seconds from handing the team an empty piece of work to its end, the median of `repeats`.
double launch_seconds(int repeats);

/// Seconds of one barrier of the team inside running work, the mean over `repeats`.
double barrier_seconds(int repeats);

} // namespace zmlx
