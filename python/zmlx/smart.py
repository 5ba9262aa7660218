# zmlx/smart.py: `smart_patch`: measures every pattern on this machine and keeps what helps.
"""Which patterns to keep is measured, for decode and for prompts apart, and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from zmlx import _ext
from zmlx.bench import capsule, machine, report
from zmlx.bench.inference import no_progress
from zmlx.bench.progress import bar_on_stderr
from zmlx.bench.search import Choice, Search, Switch
from zmlx.patch import (
    ByLength,
    Report,
    Unsupported,
    check_activations,
    install,
    make_runner,
    unpatch,
)
from zmlx.presets import cache_folder

PROMPT_TOKENS = 64


class Patterns:
    """The switch of zmlx's own patterns. A set is captured once and then swapped in."""

    def __init__(self, model: nn.Module, exact: bool = False, activations: str = "exact") -> None:
        self.model = model
        self.options = {"exact": exact, "activations": activations}
        self.runners: dict[frozenset[str], Any] = {}

    def parts(self, tokens: int) -> list[str]:
        runner = make_runner(self.model, **self.options)
        if not runner.prepare(1, tokens):
            raise Unsupported(_short(runner.reasons))
        return sorted(runner.report.fired)

    def obstacle(self, choice: Choice, tokens: int) -> str | None:
        if choice is None:
            return None
        if not choice:
            return "no pattern is left"
        runner = self.runner(choice)
        return None if runner.prepare(1, tokens) else _short(runner.reasons)

    def runner(self, choice: frozenset[str]) -> Any:
        if choice not in self.runners:
            if len(self.runners) > 3:  # each holds its plans' memory
                self.runners.pop(next(iter(self.runners)))
            unpatch(self.model)
            self.runners[choice] = make_runner(self.model, sorted(choice), **self.options)
        return self.runners[choice]

    def apply(self, decode: Choice, prompt: Choice) -> None:
        sides = [None if choice is None else self.runner(choice) for choice in (decode, prompt)]
        if sides == [None, None]:
            unpatch(self.model)
            return
        object.__setattr__(self.model, "zmlx", Report(patched=True))
        install(self.model, sides[0] if sides[0] is sides[1] else ByLength(*sides))

    def revert(self) -> None:
        unpatch(self.model)
        self.runners.clear()


def _short(reasons: Sequence[str]) -> str:
    """The first reason, and how many more there are."""
    more = len(set(reasons)) - 1
    return reasons[0] + (f", and {more} more reasons" if more > 0 else "")


def smart_patch(
    model: nn.Module,
    sample: Sequence[int] | None = None,
    threshold: float = 0.01,
    budget_s: float = 120.0,
    exact: bool = False,
    activations: str = "exact",
    refresh: bool = False,
    progress: bool = True,
    verbose: bool = False,
    switch: Switch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> nn.Module:
    """Patches a model with what was measured to help on this machine, and returns it.

    The decision is kept in the user's cache for this machine, model geometry, and versions; the
    next call applies it without measuring.

    Args:
        model: a model from `mlx_lm.load`.
        sample: token ids of a typical prompt; by default 64 random ones.
        threshold: smaller differences, as a share, do not count as help.
        budget_s: seconds after which nothing more is begun. What is undecided then stays as it is
            in the best set that was measured; if none was, the model stays as it was.
        exact, activations: as for `patch`.
        refresh: measure again even if there is a decision.
        progress: show a progress bar on stderr.
        verbose: print what was measured.
        switch, clock: what is switched and what tells the time; for tests.

    Returns:
        The same object. `model.zmlx` is a `Report`, and its `decision` the capsule of kind
        "decision" with every candidate, its runs, whether it was kept, and why.

    Raises:
        TypeError: `model` is not an `mlx.nn.Module`. ValueError: an argument that cannot be.
    """
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise TypeError(f"[smart_patch] model must be an mlx.nn.Module but is {kind}.")
    check_activations("smart_patch", activations)
    if not 0 <= threshold < 1:
        raise ValueError(f"[smart_patch] threshold must be from 0 to 1 but got {threshold}.")
    if budget_s <= 0:
        raise ValueError(f"[smart_patch] budget_s must be positive but got {budget_s}.")
    if sample is not None and len(sample) < 2:
        raise ValueError("[smart_patch] sample must have two tokens or more.")
    start = clock()
    unpatch(model)
    prompt = list(sample) if sample is not None else _random_tokens(model)
    settings = {
        "threshold": threshold,
        "budget_s": budget_s,
        "exact": exact,
        "activations": activations,
    }
    key = decision_key(model, {**settings, "prompt_tokens": len(prompt)})
    path = decision_path(key)
    document = None if refresh else _known_decision(path)
    used = switch or Patterns(model, exact, activations)
    if document is None:
        search = Search(model, prompt, used, key, settings, clock)
        with _bar(progress) as tell:
            document = search.run(path, tell)
    choices = {name: phase["chosen"] for name, phase in document["phases"].items()}
    decode, prompts = (
        None if choices.get(name) is None else frozenset(choices[name])
        for name in ("decode", "prompt")
    )
    used.apply(decode, prompts)
    _report(model, document, decode, prompts)
    model.zmlx.seconds = clock() - start
    if verbose:
        print(report.markdown(document), file=sys.stderr)
    return model


def _random_tokens(model: nn.Module) -> list[int]:
    """The same for each model of a vocabulary; its size is read off a step that never runs."""
    vocabulary = model(mx.zeros((1, 1), mx.int32)).shape[-1]
    random = np.random.Generator(np.random.PCG64(0))
    return random.integers(0, vocabulary, PROMPT_TOKENS).tolist()


def decision_key(model: nn.Module, settings: dict[str, Any]) -> str:
    """Digest of everything a decision depends on: machine, geometry, versions, settings."""
    here = machine.machine()
    facts = {
        "machine": {name: here[name] for name in ("cpu", "usable_cores", "simd", "device")},
        "threads": machine.threads(),
        "environment": machine.environment(),
        "versions": {**machine.versions(), "extension": _extension_stamp()},
        "patterns": _ext.pattern_names(),
        "model": [type(model).__module__, type(model).__qualname__, repr(vars(model).get("args"))],
        "arrays": [[name, a.shape, str(a.dtype)] for name, a in tree_flatten(model.parameters())],
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def decision_path(key: str) -> Path:
    """Where a decision is kept, in the user's cache."""
    return cache_folder().parent / "decisions" / f"{key}.json"


def _extension_stamp() -> list[list[Any]]:
    """Sizes and times of the compiled files: another build is another version."""
    folder = Path(_ext.__file__).resolve().parent
    files = sorted(path for path in folder.rglob("*") if {".so", ".dylib"} & set(path.suffixes))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _known_decision(path: Path) -> dict[str, Any] | None:
    """A whole decision from the cache; None when there is none that can be used."""
    try:
        document = capsule.read(path)
    except (OSError, ValueError):
        return None
    return document if document["kind"] == "decision" and document["complete"] else None


def _report(model: nn.Module, document: dict[str, Any], decode: Choice, prompt: Choice) -> None:
    """`model.zmlx`, in the terms of `patch`, with the decision."""
    found = vars(model).get("zmlx") or Report()
    found.decision = document
    runner = vars(model).get("_zmlx_runner")
    runner = getattr(runner, "decode", runner)
    if decode is not None and runner is not None and runner.prepare(1, 1):
        found.read(runner)
    if decode is None and prompt is None:
        found.patched = False
        phases = document["phases"].items()
        found.reasons = [f"{name}: stock was kept: {_last_word(phase)}" for name, phase in phases]
    object.__setattr__(model, "zmlx", found)


def _last_word(phase: dict[str, Any]) -> str:
    """Why stock stays: its last trial against stock, or what kept it from having one."""
    candidates = phase["candidates"]
    timed = [candidate for candidate in candidates if candidate["against"] == "stock"]
    return (timed or candidates)[-1]["why"]


def _bar(show: bool) -> Any:
    """A context that gives something to tell the progress to."""
    return bar_on_stderr("s") if show else contextlib.nullcontext(no_progress)
