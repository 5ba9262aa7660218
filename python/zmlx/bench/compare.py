# zmlx/bench/compare.py: two results of the same work: which figures differ, and how surely.
"""`zmlx compare A.json B.json`: Welch's interval for each figure, from the raw runs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from zmlx.bench.inference import METRICS
from zmlx.bench.report import number
from zmlx.bench.statistics import CONFIDENCE, Change, unpaired_change, verdict

KINDS = ("inference", "validation")
SIDES = ("stock", "patched")
# More runs make a better measurement of the same thing, and the load is no property.
MAY_DIFFER = ("runs", "stock_runs", "order", "load_average")
# Memory is not fast or slow.
MEMORY_WORDS = {"faster": "less", "slower": "more"}
WORSE = ("slower", "more")


@dataclass(frozen=True)
class Row:
    """One figure of one side in both results; `change` is None where a side has a single run."""

    side: str
    title: str
    before: float
    after: float
    change: Change | None
    verdict: str  # faster, slower (less, more for memory), no difference, or single runs


# Settings that older results do not name, and what they were.
SINCE = {"activations": "exact"}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes two results incomparable: "machine cpu: X and Y"; empty when nothing does."""
    found = [
        f"{name} is incomplete: {document['stopped']}"
        for name, document in (("the first", a), ("the second", b))
        if not document["complete"]
    ]
    for part in ("machine", "model", "settings", "environment"):
        sides = [document[part] or {} for document in (a, b)]
        for name in sorted({*sides[0], *sides[1]} - set(MAY_DIFFER)):
            before, after = (side.get(name, SINCE.get(name)) for side in sides)
            if before != after:
                found.append(f"{part} {name}: {before} and {after}")
    return found


def changes(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Versions and commits that differ: what a comparison is usually about."""
    found = [
        f"{name} {a['versions'].get(name)} and {b['versions'].get(name)}"
        for name in sorted({*a["versions"], *b["versions"]})
        if a["versions"].get(name) != b["versions"].get(name)
    ]
    if a["commit"] != b["commit"]:
        sides = (_commit(document["commit"]) for document in (a, b))
        found.append(f"commit {' and '.join(sides)}")
    return found


def _commit(commit: dict[str, Any] | None) -> str:
    if commit is None:
        return "unknown"
    return commit["hash"][:10] + (" with changes" if commit["modified"] else "")


def rows(
    a: dict[str, Any],
    b: dict[str, Any],
    threshold: float = 0.01,
    confidence: float = CONFIDENCE,
) -> list[Row]:
    """Every figure that both results have.

    The confidence is that of all verdicts together (Bonferroni): two equal results get any
    verdict but "no difference" in at most 1 - confidence of comparisons.
    """
    figures = [
        (side, metric, *values)
        for side in SIDES
        for metric in METRICS
        if all(values := (_values(a, side, metric.field), _values(b, side, metric.field)))
    ]
    level = 1 - (1 - confidence) / max(1, len(figures))
    found = []
    for side, metric, before, after in figures:
        change, words = None, "single runs"
        if min(len(before), len(after)) > 1:
            change = unpaired_change(before, after, level)
            words = verdict(change, metric.better, threshold)
            if metric.title.startswith("memory"):
                words = MEMORY_WORDS.get(words, words)
        medians = (statistics.median(values) * metric.scale for values in (before, after))
        found.append(Row(side, f"{metric.title}, {metric.unit}", *medians, change, words))
    return found


def worse(found: list[Row]) -> list[str]:
    """Figures of the patched model that got worse; stock's only show what the machine does."""
    return [row.title for row in found if row.side == "patched" and row.verdict in WORSE]


def show(found: list[Row], console: Console) -> None:
    """Prints the rows as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(("", "", "first", "second", "change", "verdict")):
        table.add_column(heading, justify="right" if i > 1 else "left")
    for row in found:
        table.add_row(
            row.side, row.title, number(row.before), number(row.after), _interval(row), row.verdict
        )
    console.print(table, highlight=False, soft_wrap=True)


def _interval(row: Row) -> str:
    if row.change is None:
        return "-"
    ratio, low, high = (
        f"{100 * (value - 1):+.1f}%"
        for value in (row.change.ratio, row.change.low, row.change.high)
    )
    return f"{ratio} ({low} to {high})"


def _values(document: dict[str, Any], side: str, field: str) -> list[float]:
    values = [run.get(field) for run in document["runs"] if run["variant"] == side]
    return [value for value in values if value]
