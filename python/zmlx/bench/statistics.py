# zmlx/bench/statistics.py: median, minimum, maximum, and when two sets of runs differ.
"""The few statistics that a benchmark of a handful of runs supports."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

# Share of the value, both ways, that a single run is taken to vary by.
SINGLE_RUN_SPREAD = 0.05


@dataclass(frozen=True)
class Summary:
    """Of one metric over its runs, in the metric's unit."""

    median: float
    min: float
    max: float
    runs: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def summarize(values: Sequence[float | None]) -> Summary | None:
    """The summary of what was measured (None is a run without this metric), or None."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Summary(statistics.median(known), min(known), max(known), len(known))


def differ(a: Summary, b: Summary) -> bool:
    """Whether every run of one lies beyond every run of the other.

    One run shows no spread: `SINGLE_RUN_SPREAD` stands in for it.
    """
    (a_min, a_max), (b_min, b_max) = _range(a), _range(b)
    return a_max < b_min or b_max < a_min


def _range(summary: Summary) -> tuple[float, float]:
    spread = SINGLE_RUN_SPREAD if summary.runs == 1 else 0.0
    return summary.min * (1 - spread), summary.max * (1 + spread)


def alternate(stock_runs: int, patched_runs: int) -> list[str]:
    """The order of runs: A B B A A B ..., so that a drift of the machine meets both alike.

    When one side has fewer runs, the other's remaining runs come last.
    """
    left = {"stock": stock_runs, "patched": patched_runs}
    order: list[str] = []
    pair = ["stock", "patched"]
    while any(left.values()):
        for variant in pair:
            if left[variant]:
                order.append(variant)
                left[variant] -= 1
        pair.reverse()
    return order
