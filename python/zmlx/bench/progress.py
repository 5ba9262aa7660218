# zmlx/bench/progress.py: the progress bar, drawn so seldom that no figure shows it.
"""A bar on stderr for measurements."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Drawing the bar takes a core for a millisecond: seldom enough not to show in a figure.
REFRESH_SECONDS = 2.0


class Bar:
    """The progress bar: redrawn by the measuring thread itself, and seldom."""

    def __init__(self, console: Console, unit: str = "tokens") -> None:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        self.task = self.progress.add_task("", total=0)
        self.doing = ""
        self.drawn = 0.0

    def __call__(self, doing: str, done: int, total: int) -> None:
        now = time.monotonic()
        if doing == self.doing and now - self.drawn < REFRESH_SECONDS:
            return
        self.doing, self.drawn = doing, now
        self.progress.update(self.task, description=doing, completed=done, total=total)
        self.progress.refresh()


@contextlib.contextmanager
def bar_on_stderr(unit: str) -> Iterator[Bar]:
    """A bar that is gone afterwards."""
    bar = Bar(Console(stderr=True), unit)
    with bar.progress:
        yield bar
