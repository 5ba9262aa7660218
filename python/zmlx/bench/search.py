# zmlx/bench/search.py: measures sets of patterns against each other and finds the best.
"""The search behind `smart_patch`.

Patterns build on one another, so a pattern is judged by leaving it out of the set that is best so
far, for decode and for prompts apart. Nothing is timed before its logits were found as close to
float32 as stock's. `docs/measuring.md` says how a verdict comes about.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from zmlx.bench import capsule, machine
from zmlx.bench.closeness import SLACK, Distance, Logits, distance, in_float32, noise_of
from zmlx.bench.inference import Progress, no_progress
from zmlx.bench.statistics import CONFIDENCE, LOOKS, Trial, paired_trial
from zmlx.patch import Unsupported

Choice = frozenset[str] | None  # names of patterns; None: stock

STEPS = 16
A_A_PAIRS = 12
# A shorter run is repeated: clocks and wake-ups would be most of it.
RUN_SECONDS = 0.02
# Of the budget, for one run of stock: about sixteen are needed.
STOCK_SHARE = 1 / 40
LEAST_TOKENS = 2
# One position's error is one value of few: it has more luck than the mean of all.
POSITION_SLACK = 2.0


class Switch(Protocol):
    """Puts sets of patterns under a model's calls, decode and prompts apart, and takes them off."""

    def parts(self, tokens: int) -> Sequence[str]:
        """Names of the patterns that fire in a step of so many tokens; may raise Unsupported."""
        ...

    def obstacle(self, choice: Choice, tokens: int) -> str | None:
        """Why a set gives no plan for a step of so many tokens; None when it does."""
        ...

    def apply(self, decode: Choice, prompt: Choice) -> None: ...

    def revert(self) -> None: ...


class Search:
    """One decision: the reference, then for prompts and for decode the candidates one by one."""

    def __init__(
        self,
        model: nn.Module,
        prompt: list[int],
        switch: Switch,
        key: str,
        settings: dict[str, Any],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.switch = switch
        self.clock = clock
        self.started = clock()
        self.budget = settings["budget_s"]
        self.threshold = settings["threshold"]
        self.progress: Progress = no_progress
        self.chosen: dict[str, Choice] = {"prompt": None, "decode": None}
        self.doing = ""
        self.document: dict[str, Any] = {
            **capsule.envelope("decision", _facts(model), {}),
            "settings": {
                **settings,
                "key": key,
                "confidence": CONFIDENCE,
                "looks": list(LOOKS),
                "threads": machine.threads(),
                "prompt_tokens": len(prompt),
                "steps": STEPS,
                "stock_prompt_tokens": len(prompt),
                "stock_steps": STEPS,
            },
            "stock": None,
            "phases": {},
            "seconds": 0.0,
        }

    def run(self, path: Path, progress: Progress = no_progress) -> dict[str, Any]:
        """Measures, writes the capsule, and returns it; the model is unpatched afterwards."""
        self.progress = progress

        def save() -> None:
            self.document["seconds"] = self.clock() - self.started
            capsule.write(path, self.document)

        with capsule.recording(self.document, save):
            try:
                self._measure()
            finally:
                self.switch.revert()
        return self.document

    def has_time(self) -> bool:
        """Whether the budget is not spent."""
        spent = self.clock() - self.started
        self.progress(self.doing, min(int(spent), int(self.budget)), math.ceil(self.budget))
        return spent < self.budget

    def _measure(self) -> None:
        self.doing = "reference"
        self.progress(self.doing, 0, math.ceil(self.budget))
        self._cut_stocks_share()
        with in_float32(self.model):
            self.reference, self.tokens = self._logits(None)
        stock, _ = self._logits(self.tokens)
        self.stock = distance(self.reference, stock)
        self.stock_worst = _worst_position(self.reference, stock)
        self.noise = noise_of(self.reference)
        self.document["stock"] = self.stock.as_dict()
        # Prompts first: decode's cache is filled by whatever was chosen for them.
        for name in ("prompt", "decode"):
            Phase(self, name).run()

    def _cut_stocks_share(self) -> None:
        """Shortens what stock has to do, where stock is slow, to its share of the budget."""
        mx.eval(self.model.parameters())
        share = self.budget * STOCK_SHARE
        seconds = self._time_prompt(self.prompt[:LEAST_TOKENS])
        if seconds < share:  # the first run is slower than others
            seconds = self._time_prompt(self.prompt[:LEAST_TOKENS])
        tokens = max(LEAST_TOKENS, int(LEAST_TOKENS * share / max(seconds, 1e-9)))
        self.short, self.few = self.prompt[:tokens], min(STEPS, tokens)
        settings = self.document["settings"]
        settings["stock_prompt_tokens"], settings["stock_steps"] = len(self.short), self.few

    def _logits(self, tokens: Sequence[int] | None) -> tuple[Logits, list[int]]:
        """Of every position of stock's prompt in one call, then of its steps."""
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        found = [self.model(mx.array([self.short]), cache=cache)[0].astype(mx.float32)]
        chosen = []
        for step in range(self.few):
            best = int(found[-1][-1].argmax().item())
            chosen.append(best if tokens is None else tokens[step])
            logits = self.model(mx.array([[chosen[-1]]]), cache=cache)
            found.append(logits[0].astype(mx.float32))
        return np.concatenate([np.array(part) for part in found]), chosen

    def apply(self, name: str, choice: Choice) -> None:
        """Switches one phase to a choice, the other to what was chosen for it."""
        chosen = {**self.chosen, name: choice}
        self.switch.apply(chosen["decode"], chosen["prompt"])

    def fault(self, name: str, choice: Choice) -> tuple[Distance | None, str | None]:
        """A candidate's distance from float32, and why it must not be used; None when it may."""
        if choice is None:
            return self.stock, None
        tokens = 1 if name == "decode" else len(self.prompt)
        obstacle = self.switch.obstacle(choice, tokens)
        if obstacle:
            return None, f"cannot be planned: {obstacle}"
        self.apply(name, choice)
        logits, _ = self._logits(self.tokens)
        found = distance(self.reference, logits)
        worst = _worst_position(self.reference, logits)
        close = found.rms <= max(SLACK * self.stock.rms, self.noise) and worst <= max(
            POSITION_SLACK * self.stock_worst, 10 * self.noise
        )
        if close:  # false for NaN, too
            return found, None
        return found, (
            f"wrong results: logits lie {found.rms:.3g} from float32, stock's {self.stock.rms:.3g}"
        )

    def trial(self, name: str, before: Choice, after: Choice, **options: Any) -> Trial:
        """Times `after` against `before` in pairs; what includes stock has stock's share."""
        has_stock = before is None or after is None
        if name == "prompt":
            prompt = self.short if has_stock else self.prompt

            def run() -> float:
                return self._time_prompt(prompt)

        else:
            count = self.few if has_stock else STEPS
            tokens = [self.prompt[i % len(self.prompt)] for i in range(count)]
            cache = self._filled_cache()

            def run() -> float:
                return self._time_steps(tokens, cache)

        def side(choice: Choice) -> Callable[[], float]:
            self.apply(name, choice)
            seconds = run()  # warm-up
            if seconds < RUN_SECONDS:
                seconds = run()
            repeats = max(1, math.ceil(RUN_SECONDS / max(seconds, RUN_SECONDS / 100)))

            def timed() -> float:
                self.apply(name, choice)
                return sum(run() for _ in range(repeats)) / repeats

            return timed

        if not self.has_time():
            return Trial([], [], None, "undecided")
        return paired_trial(side(before), side(after), may_go_on=self.has_time, **options)

    def _filled_cache(self) -> list[Any]:
        from mlx_lm.models.cache import make_prompt_cache

        self.apply("prompt", self.chosen["prompt"])
        cache = make_prompt_cache(self.model)
        self.model(mx.array([self.short]), cache=cache)
        mx.eval([entry.state for entry in cache])
        return cache

    def _time_prompt(self, prompt: Sequence[int]) -> float:
        """Seconds of a prompt as mlx_lm processes it: the logits are not asked for."""
        from mlx_lm.models.cache import make_prompt_cache

        tokens = mx.array([prompt])
        cache = make_prompt_cache(self.model)
        start = self.clock()
        self.model(tokens, cache=cache)
        mx.eval([entry.state for entry in cache])
        return self.clock() - start

    def _time_steps(self, tokens: Sequence[int], cache: list[Any]) -> float:
        """Seconds of decode steps; the cache is as before afterwards."""
        inputs = [mx.array([[token]]) for token in tokens]
        start = self.clock()
        for token in inputs:
            mx.eval(self.model(token, cache=cache))
        seconds = self.clock() - start
        for entry in cache:
            entry.trim(len(tokens))
        return seconds


class Phase:
    """The search for one phase's best set: all, then without each pattern."""

    def __init__(self, search: Search, name: str) -> None:
        self.search = search
        self.name = name
        self.document: dict[str, Any] = {
            "chosen": None,
            "noise": None,
            "a_a": None,
            "candidates": [],
        }
        search.document["phases"][name] = self.document

    def run(self) -> None:
        """Searches; the result is in the document and in `search.chosen`."""
        if not self.search.has_time():
            return self._note("all patterns", None, why="not measured: the budget was spent before")
        try:
            tokens = 1 if self.name == "decode" else len(self.search.prompt)
            parts = self.search.switch.parts(tokens)
        except Unsupported as reason:
            return self._note("all patterns", None, why=f"cannot be planned: {reason}")
        everything = self._faithful(frozenset(parts))
        if everything is None:
            return None
        self._measure_noise(everything)
        whole = everything == frozenset(parts)
        helps = self._against_stock("all patterns" if whole else "what is right", everything)
        if not helps and not self.search.has_time():
            return None
        best = self._leave_out(everything)
        if best != everything:
            if helps and not self._holds_up(everything, best):
                best = everything
            elif not self._against_stock("what is left", best):
                best = None if not helps else everything
        elif not helps:
            best = None
        self.document["chosen"] = None if best is None else sorted(best)
        self.search.chosen[self.name] = best
        return None

    def _faithful(self, choice: frozenset[str]) -> frozenset[str] | None:
        """The set without the patterns that make results wrong; None when nothing is left of it."""
        name = "all patterns"
        while True:
            found, fault = self._fault(name, choice)
            if fault is None:
                return choice
            self._note(name, choice, found=found, why=fault)
            closest: tuple[float, str] | None = None
            for part in sorted(choice):
                if not self.search.has_time():
                    return None
                found, fault = self._fault(f"without {part}", choice - {part})
                if fault is None:
                    self._note(f"without {part}", choice - {part}, found=found, kept=True,
                               why=f"right results: {part} is reverted")  # fmt: skip
                    return choice - {part}
                self._note(f"without {part}", choice - {part}, found=found, why=fault)
                if found is not None and not math.isnan(found.rms):
                    closest = min(closest or (math.inf, ""), (found.rms, part))
            if closest is None:
                return None
            choice = choice - {closest[1]}
            name = f"without {closest[1]}, too"

    def _fault(self, name: str, choice: frozenset[str]) -> tuple[Distance | None, str | None]:
        self.search.doing = f"{self.name}: {name}"
        self.search.has_time()
        return self.search.fault(self.name, choice)

    def _measure_noise(self, choice: frozenset[str]) -> None:
        """What the same set against itself differs by."""
        self.search.doing = f"{self.name}: noise"
        trial = self.search.trial(self.name, choice, choice, looks=(A_A_PAIRS,))
        self.document["a_a"] = trial.as_dict()
        self.document["noise"] = abs(math.log(trial.change.ratio)) if trial.change else None
        self.tolerated = max(self.search.threshold, self.document["noise"] or 0.0)

    def _trial(self, name: str, before: Choice, after: Choice) -> Trial:
        self.search.doing = f"{self.name}: {name}"
        return self.search.trial(self.name, before, after, noise=self.tolerated)

    def _against_stock(self, name: str, choice: frozenset[str]) -> bool:
        trial = self._trial(f"{name} against stock", None, choice)
        faster = trial.verdict == "faster"
        why = _words(trial, "stock")
        self._note(name, choice, against="stock", trial=trial, kept=faster, why=why)
        return faster

    def _holds_up(self, everything: frozenset[str], best: frozenset[str]) -> bool:
        """Whether the set after all reverts is not slower than the one before them."""
        trial = self._trial("what is left against the set before", everything, best)
        kept = trial.verdict != "slower"
        why = _words(trial, "the set before") + ("" if kept else ": all come back")
        self._note("what is left", best, against="the set before", trial=trial, kept=kept, why=why)
        return kept

    def _leave_out(self, best: frozenset[str]) -> frozenset[str]:
        """Leaves out each pattern whose absence does not slow the step down."""
        for part in sorted(best):
            if len(best) == 1:
                break
            name, choice = f"without {part}", best - {part}
            if not self.search.has_time():
                self._note(name, choice, why=f"not measured, the budget is spent: {part} stays")
                continue
            found, fault = self._fault(name, choice)
            if fault is not None:
                self._note(name, choice, found=found, why=f"{fault}: {part} stays")
                continue
            trial = self._trial(name, best, choice)
            reverted = trial.verdict in ("faster", "no difference")
            what = "is reverted" if reverted else "stays"
            self._note(name, choice, against="the best before", found=found, trial=trial,
                       kept=reverted, why=f"{_words(trial, 'with it')}: {part} {what}")  # fmt: skip
            if reverted:
                best = choice
        return best

    def _note(
        self,
        name: str,
        choice: Choice,
        against: str | None = None,
        found: Distance | None = None,
        trial: Trial | None = None,
        kept: bool = False,
        why: str = "",
    ) -> None:
        self.document["candidates"].append(
            {
                "name": name,
                "patterns": None if choice is None else sorted(choice),
                "against": against,
                "distance": found and found.as_dict(),
                "trial": trial and trial.as_dict(),
                "kept": kept,
                "why": why,
            }
        )


def _words(trial: Trial, other: str) -> str:
    """The verdict in words, with its interval."""
    if trial.change is None:
        return f"not measured against {other}, the budget is spent"
    low, high = (100 * (value - 1) for value in (trial.change.low, trial.change.high))
    return f"{trial.verdict}, time {low:+.1f}% to {high:+.1f}% of {other}"


def _worst_position(reference: Logits, logits: Logits) -> float:
    """The largest root mean square difference of a single position."""
    return float(np.sqrt(np.mean((reference.astype(np.float64) - logits) ** 2, axis=-1)).max())


def _facts(model: nn.Module) -> dict[str, Any]:
    """The model as capsules describe it, as far as the object itself knows."""
    weights = [array for _, array in tree_flatten(model.parameters())]
    floats = {str(w.dtype) for w in weights if mx.issubdtype(w.dtype, mx.floating)}
    quantised = next((m for m in model.modules() if hasattr(m, "group_size")), None)
    kind = getattr(model, "model_type", type(model).__module__.rpartition(".")[2])
    return {
        "name": kind,
        "preset": None,
        "model_type": kind,
        "layers": len(model.layers) if hasattr(model, "layers") else 1,
        "dtypes": sorted(name.rpartition(".")[2] for name in floats),
        "bits": getattr(quantised, "bits", None),
        "group_size": getattr(quantised, "group_size", None),
        "weight_bytes": sum(w.nbytes for w in weights),
    }
