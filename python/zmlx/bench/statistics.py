# zmlx/bench/statistics.py: medians, confidence intervals, and when two sets of runs differ.
"""The few statistics that a benchmark of a handful of runs supports.

Changes are factors: logarithms are compared, as noise in times is multiplicative.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Share of the value, both ways, that a single run is taken to vary by.
SINGLE_RUN_SPREAD = 0.05
# Of a verdict: two equal sides are called different in at most 5% of comparisons.
CONFIDENCE = 0.95
# After how many pairs a trial looks for its verdict. Two are enough for a factor of many.
LOOKS = (2, 3, 6, 12, 24)


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


@dataclass(frozen=True)
class Change:
    """By what factor one side's values lie above the other's, with its confidence interval."""

    ratio: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def paired_change(
    before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE
) -> Change:
    """`after` over `before` where value i of both was measured side by side.

    Student's t interval of the mean of log(after / before): what slows both sides of a pair
    alike cancels. Source: any textbook, e.g. NIST/SEMATECH e-Handbook, 1.3.5.2.
    """
    if len(before) != len(after) or len(before) < 2:
        raise ValueError(f"pairs are needed, two or more, but got {len(before)} and {len(after)}.")
    logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return _change(statistics.fmean(logs), error, len(logs) - 1, confidence)


def unpaired_change(
    before: Sequence[float], after: Sequence[float], confidence: float = CONFIDENCE
) -> Change:
    """`after` over `before` where both were measured apart.

    Welch's interval of the difference of mean logarithms: the spreads may differ. Source: B. L.
    Welch, Biometrika 34 (1947), with Satterthwaite's degrees of freedom.
    """
    if min(len(before), len(after)) < 2:
        raise ValueError(
            f"two or more runs of each are needed but got {len(before)} and {len(after)}."
        )
    a, b = ([math.log(value) for value in side] for side in (before, after))
    parts = [statistics.variance(side) / len(side) for side in (a, b)]
    total = sum(parts)
    freedom = (
        total**2 / sum(p**2 / (len(side) - 1) for p, side in zip(parts, (a, b), strict=True))
        if total
        else 1.0
    )
    return _change(statistics.fmean(b) - statistics.fmean(a), math.sqrt(total), freedom, confidence)


def _change(mean: float, error: float, freedom: float, confidence: float) -> Change:
    # Light to import, unlike scipy.stats.
    from scipy.special import stdtrit

    reach = float(stdtrit(freedom, 0.5 + confidence / 2)) * error if error else 0.0
    return Change(math.exp(mean), math.exp(mean - reach), math.exp(mean + reach))


def verdict(change: Change, better: str, noise: float = 0.0) -> str:
    """ "faster" or "slower" where the whole interval lies beyond 1 by more than `noise`.

    `better` is "higher" for rates and "lower" for times; `noise` is a share, such as 0.01.
    """
    above, below = change.low > 1 + noise, change.high < 1 / (1 + noise)
    if above or below:
        return "faster" if above == (better == "higher") else "slower"
    return "no difference"


def is_equal(change: Change, noise: float) -> bool:
    """Whether the whole interval lies within `noise` of 1: no difference worth having."""
    return 1 / (1 + noise) <= change.low and change.high <= 1 + noise


@dataclass(frozen=True)
class Trial:
    """Two sides measured in pairs until their difference was plain, or time or patience ran out."""

    before: list[float]
    after: list[float]
    change: Change | None
    verdict: str  # "faster", "slower", "no difference" or "undecided": of `after`, in times

    def as_dict(self) -> dict[str, Any]:
        return {
            "before": self.before,
            "after": self.after,
            "change": self.change.as_dict() if self.change else None,
            "verdict": self.verdict,
        }


def paired_trial(
    before: Callable[[], float],
    after: Callable[[], float],
    noise: float = 0.0,
    looks: Sequence[int] = LOOKS,
    confidence: float = CONFIDENCE,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Trial:
    """Times two sides in the order A B B A until the verdict is plain.

    The verdict is sought after so many pairs as `looks` says and nowhere else. Each look errs
    in at most its equal part of 1 - confidence (Bonferroni), so the trial as a whole errs in at
    most 1 - confidence: looking often does not make a difference out of nothing.
    """
    level = 1 - (1 - confidence) / len(looks)
    a: list[float] = []
    b: list[float] = []
    change = None
    for look in looks:
        while len(a) < look:
            if not may_go_on():
                return Trial(a, b, change, "undecided")
            if len(a) % 2:
                b.append(after())
                a.append(before())
            else:
                a.append(before())
                b.append(after())
        change = paired_change(a, b, level)
        found = verdict(change, "lower", noise)
        if found != "no difference":
            return Trial(a, b, change, found)
        if is_equal(change, noise):
            return Trial(a, b, change, "no difference")
    return Trial(a, b, change, "undecided")
