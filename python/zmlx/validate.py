# zmlx/validate.py: whether a patched model still computes what the model computes.
"""`zmlx validate` and `python -m zmlx.validate`.

The reference is stock MLX with the same weights and float32 activations. It chooses the tokens;
stock and the patched model get these very tokens, so that every step compares like with like.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zmlx.bench import capsule, closeness, machine
from zmlx.bench.closeness import Distance, Logits, Steps, distance, parting
from zmlx.bench.inference import (
    Identity,
    Options,
    Patch,
    Patcher,
    Progress,
    load_model,
    make_prompt,
    no_progress,
    report_of,
)

# The text of the perplexity; its figures compare sides, not models.
TEXT = (
    "The sea lay flat and grey under the morning, and the boats had not gone out. On the quay an "
    "old man mended a net and counted, under his breath, the knots that had held and those that "
    "had not. When the wind turned he looked up, as one looks up at a voice, and put the net away. "
    "There would be fish tomorrow, he said to nobody, or there would be rain."
)
# A largest difference is one value of many: it has more luck than a mean.
LARGEST_SLACK = 1.5
# Relative; below this, perplexities do not differ.
PERPLEXITY_NOISE = 0.01
KL_NOISE = 1e-6


@dataclass(frozen=True)
class Work:
    """What to compare. Each length of `prompt_tokens` gets `prompts` prompts of random tokens."""

    prompt_tokens: tuple[int, ...] = (4, 16, 48)
    prompts: int = 1
    steps: int = 16
    runs: int = 2
    stock_runs: int = 1
    text: str = TEXT
    text_tokens: int = 64
    exact: bool = False
    patterns: tuple[str, ...] | None = None

    def check(self) -> None:
        """Raises ValueError, in one line, for what cannot be compared."""
        for name, values in (
            ("prompt-tokens", self.prompt_tokens),
            ("prompts", [self.prompts]),
            ("steps", [self.steps]),
            ("runs", [self.runs]),
            ("stock-runs", [self.stock_runs]),
        ):
            for value in values:
                if value < 1:
                    raise ValueError(f"--{name} must be 1 or more but got {value}.")
        if self.text_tokens < 0 or self.text_tokens == 1:
            raise ValueError(f"--text-tokens must be 0, or 2 or more, but got {self.text_tokens}.")


@dataclass
class _Case:
    """One prompt and what the sides made of it."""

    prompt: list[int]
    reference: Steps
    stock: list[Steps] = field(default_factory=list)
    patched: list[Steps] = field(default_factory=list)
    own: Steps | None = None  # stock's own greedy text, where it is not the reference's
    own_patched: Steps | None = None  # the patched model on that text

    def document(self) -> dict[str, Any]:
        stock, patched = self.stock[0].logits, self.patched[0].logits
        if self.own is not None and self.own_patched is not None:
            apart = parting(self.own.logits, self.own_patched.logits)
        else:
            apart = parting(stock, patched)
        sides = {"stock": stock, "patched": patched}
        return {
            "prompt_tokens": len(self.prompt),
            "tokens": self.reference.tokens,
            **{name: self._side(logits) for name, logits in sides.items()},
            "from_stock": apart and apart.as_dict(),
            "reproducible": {"stock": _equal(self.stock), "patched": _equal(self.patched)},
        }

    def _side(self, logits: Logits) -> dict[str, Any]:
        apart = parting(self.reference.logits, logits)
        return {
            "distance": distance(self.reference.logits, logits).as_dict(),
            "from_float32": apart and apart.as_dict(),
        }


class Validation:
    """One validation: float32, stock and patched over all prompts, and a capsule kept on disk."""

    def __init__(
        self,
        options: Options,
        work: Work | None = None,
        out: Path | None = None,
        progress: Progress = no_progress,
        patcher: Patcher | None = None,
    ) -> None:
        self.work = work or Work()
        options.check()
        self.work.check()
        self.options = options
        self.out = out
        self.progress = progress
        patterns = self.work.patterns and list(self.work.patterns)
        real = Patch(options, patterns=patterns, exact=self.work.exact)
        self.patcher = patcher or (Identity() if options.null_run else real)
        self.cases: list[_Case] = []
        self.texts: dict[str, Logits] = {}
        self.done = 0
        self.document: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Measures, and returns the capsule of kind "validation"."""
        self.options.apply_threads()
        self.progress("loading", 0, 0)
        model, tokenizer, config, facts = load_model(self.options)
        prompts = self._prompts(tokenizer, config)
        text = list(tokenizer.encode(self.work.text))[: self.work.text_tokens]
        self.document = self._document(facts, prompts, text)
        with capsule.recording(self.document, self._save):
            self._reference(model, prompts, text)
            self._stock(model, text)
            self._patched(model, text)
            self._conclude(text)
        return self.document

    def _prompts(self, tokenizer: Any, config: dict[str, Any]) -> list[list[int]]:
        if self.options.prompt_text is not None:
            return [make_prompt(self.options, tokenizer, config)]
        prompts = []
        for length in self.work.prompt_tokens:
            for _ in range(self.work.prompts):
                seed = self.options.seed + len(prompts)
                options = Options(self.options.model, prompt_tokens=length, seed=seed)
                prompts.append(make_prompt(options, tokenizer, config))
        return prompts

    def _reference(self, model: Any, prompts: list[list[int]], text: list[int]) -> None:
        with closeness.in_float32(model):
            for prompt in prompts:
                case = _Case(prompt, self._steps("float32", model, prompt, None, len(self.cases)))
                self.cases.append(case)
            self._text("float32", model, text)

    def _stock(self, model: Any, text: list[int]) -> None:
        for index, case in enumerate(self.cases):
            for _ in range(self.work.stock_runs):
                tokens = case.reference.tokens
                case.stock.append(self._steps("stock", model, case.prompt, tokens, index))
            apart = parting(case.reference.logits, case.stock[0].logits)
            if apart is not None and apart.position < self.work.steps - 1:
                case.own = self._steps("stock", model, case.prompt, None, index)
        self._text("stock", model, text)

    def _patched(self, model: Any, text: list[int]) -> None:
        self.progress("patching", self.done, self._parts())
        self.patcher.patch(model)
        try:
            for index, case in enumerate(self.cases):
                if case.own is not None:
                    tokens = case.own.tokens
                    case.own_patched = self._steps("patched", model, case.prompt, tokens, index)
                for _ in range(self.work.runs):
                    tokens = case.reference.tokens
                    case.patched.append(self._steps("patched", model, case.prompt, tokens, index))
                self.document["cases"].append(case.document())
            self._text("patched", model, text)
            self.document["patch"] = report_of(model)
        finally:
            self.patcher.unpatch(model)

    def _steps(
        self, variant: str, model: Any, prompt: list[int], tokens: list[int] | None, case: int
    ) -> Steps:
        self.progress(f"{variant}: prompt {case + 1}", self.done, self._parts())
        found = closeness.run_steps(model, prompt, self.work.steps, tokens)
        rest = len(prompt) - 1
        self.document["runs"].append(
            {
                "index": len(self.document["runs"]),
                "variant": variant,
                "case": case,
                "prompt_tokens": len(prompt),
                "generated_tokens": self.work.steps,
                "prompt_tps": rest / found.prompt_s if rest else None,
                "generation_tps": self.work.steps / found.decode_s,
            }
        )
        self.done += 1
        return found

    def _text(self, variant: str, model: Any, text: list[int]) -> None:
        if len(text) > 1:
            self.progress(f"{variant}: text", self.done, self._parts())
            self.texts[variant] = closeness.text_logits(model, text)

    def _parts(self) -> int:
        count = len(self.document["settings"]["prompt_tokens"])
        again = 2 * sum(case.own is not None for case in self.cases)
        return count * (1 + self.work.stock_runs + self.work.runs) + again

    def _document(
        self, facts: dict[str, Any], prompts: list[list[int]], text: list[int]
    ) -> dict[str, Any]:
        settings = {
            "prompts": len(prompts),
            "prompt_tokens": [len(prompt) for prompt in prompts],
            "steps": self.work.steps,
            "text_tokens": len(text),
            "runs": self.work.runs,
            "stock_runs": self.work.stock_runs,
            "seed": self.options.seed,
            "threads": machine.threads(),
            "null_run": self.options.null_run,
            "exact": self.work.exact,
            "activations": self.options.activations,
            "patterns": self.work.patterns and list(self.work.patterns),
        }
        return {
            **capsule.envelope("validation", facts, settings),
            "patch": None,
            "cases": [],
            "text": None,
            "runs": [],
            "stock": None,
            "patched": None,
            "bounds": [],
            "holds": None,
        }

    def _conclude(self, text: list[int]) -> None:
        reference = np.concatenate([case.reference.logits for case in self.cases])
        stock, patched = (
            distance(reference, np.concatenate([getattr(c, side)[0].logits for c in self.cases]))
            for side in ("stock", "patched")
        )
        self.document["stock"] = stock.as_dict()
        self.document["patched"] = patched.as_dict()
        if self.texts:
            self.document["text"] = self._text_document(text)
        self.document["bounds"] = bounds(self.document, stock, patched, reference)
        self.document["holds"] = all(bound["holds"] for bound in self.document["bounds"])

    def _text_document(self, text: list[int]) -> dict[str, Any]:
        found: dict[str, Any] = {"tokens": len(text)}
        for variant, logits in self.texts.items():
            found[variant] = {"perplexity": closeness.perplexity(logits, text)}
            if variant != "float32":
                found[variant]["distance"] = distance(self.texts["float32"], logits).as_dict()
        return found

    def _save(self) -> None:
        if self.out is not None:
            capsule.write(self.out, self.document)


def bounds(
    document: dict[str, Any], stock: Distance, patched: Distance, reference: Logits
) -> list[dict[str, Any]]:
    """What must hold for the patched model to count as the same model.

    Errors are measured from float32 and may not exceed stock's own. A token may differ only
    where errors of stock's size decide it: the reference likes both tokens nearly the same.
    """
    noise = closeness.noise_of(reference)
    error = max(stock.largest, 10 * noise)
    cases = document["cases"]
    found = [
        ("logits, root mean square", patched.rms, max(closeness.SLACK * stock.rms, noise)),
        ("logits, largest", patched.largest, max(LARGEST_SLACK * stock.largest, 10 * noise)),
        ("KL divergence, mean", patched.mean_kl, max(closeness.SLACK * stock.mean_kl, KL_NOISE)),
        ("tokens, gap from float32's choice", _widest(c["patched"]["from_float32"] for c in cases),
         2 * error),
        ("tokens, gap from stock's choice", _widest(c["from_stock"] for c in cases), 4 * error),
        ("prompts whose runs differ", sum(not c["reproducible"]["patched"] for c in cases), 0),
    ]  # fmt: skip
    text = document["text"]
    if text:
        base = text["float32"]["perplexity"]
        off = {
            side: abs(math.log(text[side]["perplexity"] / base)) for side in ("stock", "patched")
        }
        rms = {side: text[side]["distance"]["rms"] for side in ("stock", "patched")}
        found += [
            ("perplexity, relative", off["patched"], max(off["stock"], PERPLEXITY_NOISE)),
            ("text's logits, root mean square", rms["patched"],
             max(closeness.SLACK * rms["stock"], noise)),
        ]  # fmt: skip
    report = document["patch"]
    if report is not None:
        left = sum(report["stock_calls"].values()) if report["patched"] else len(document["runs"])
        found.append(("calls left to stock", left, 0))
    return [
        {"name": name, "value": value, "bound": bound, "holds": bool(value <= bound)}
        for name, value, bound in found
    ]


def _widest(partings: Any) -> float:
    return max((apart["gap"] for apart in partings if apart is not None), default=0.0)


def _equal(runs: list[Steps]) -> bool:
    return all(np.array_equal(run.logits, runs[0].logits) for run in runs)


if __name__ == "__main__":
    from zmlx.cli import main

    main(["validate", *sys.argv[1:]])
