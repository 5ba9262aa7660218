# zmlx/profile.py: the time that a function of arrays takes.
"""`time_kernel(fn, *args)`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx


def time_kernel(
    fn: Callable[..., Any], *args: Any, warmup: int = 5, iters: int = 20
) -> dict[str, float]:
    """Microseconds of a call whose results are evaluated, each by itself.

    Returns:
        `median_us`, `mean_us`, `min_us`, `max_us`, `std_us` and `iters`.

    Raises:
        ValueError: `iters` is less than 1.
    """
    if iters < 1:
        raise ValueError(f"[time_kernel] iters must be at least 1 but got {iters}.")
    times = []
    for i in range(warmup + iters):
        start = time.perf_counter_ns()
        mx.eval(fn(*args))
        mx.synchronize()
        if i >= warmup:
            times.append((time.perf_counter_ns() - start) * 1e-3)
    return {
        "median_us": statistics.median(times),
        "mean_us": statistics.fmean(times),
        "min_us": min(times),
        "max_us": max(times),
        "std_us": statistics.pstdev(times),
        "iters": float(iters),
    }


__all__ = ["time_kernel"]
