# zmlx/bench/inference.py: stock mlx_lm against the patched model, in one process, same weights.
"""The inference benchmark. `docs/benchmarks.md` says what every figure means."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from zmlx import presets
from zmlx.bench import capsule, machine
from zmlx.bench.fidelity import compare_tokens, top_logits
from zmlx.bench.statistics import Summary, alternate, differ, summarize

WARM_UP_TOKENS = 8
ACTIVATIONS = ("exact", "int8")


@dataclass(frozen=True)
class Metric:
    """One measured figure: its field in a run, how people read it, and which way is better."""

    field: str
    title: str
    unit: str
    scale: float
    better: str  # "higher" or "lower"
    needs: str  # what must be equal on both sides for a ratio: "nothing", "prompt" or "all"


METRICS = (
    Metric("prompt_tps", "prompt", "tok/s", 1, "higher", "nothing"),
    Metric("generation_tps", "generation", "tok/s", 1, "higher", "nothing"),
    Metric("time_to_first_token_s", "first token", "ms", 1e3, "lower", "prompt"),
    Metric("total_s", "total", "s", 1, "lower", "all"),
    Metric("peak_memory_bytes", "memory, MLX", "GB", 1e-9, "lower", "all"),
    Metric("peak_resident_bytes", "memory, process", "GB", 1e-9, "lower", "all"),
)


@dataclass(frozen=True)
class Options:
    """What to measure. Lengths are in tokens; `stock_*` cut stock's share (None: they do not)."""

    model: str
    runs: int = 3
    max_tokens: int = 150
    prompt_tokens: int = 306
    prompt_text: str | None = None
    stock_runs: int | None = None
    stock_max_tokens: int | None = None
    stock_prompt_tokens: int | None = None
    dtype: str | None = None
    bits: int = 4
    group_size: int = 64
    layers: int | None = None
    seed: int = 0
    threads: int | None = None
    null_run: bool = False
    activations: str = "exact"

    def check(self) -> None:
        """Raises ValueError, in one line, for numbers that cannot be measured."""
        for name, least in (
            ("runs", 1),
            ("max_tokens", 2),
            ("prompt_tokens", 1),
            ("stock_runs", 1),
            ("stock_max_tokens", 2),
            ("stock_prompt_tokens", 1),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be {least} or more but got {value}.")
        if self.dtype is not None and self.dtype not in presets.DTYPES:
            raise ValueError(
                f"--dtype must be one of {', '.join(presets.DTYPES)} but got '{self.dtype}'."
            )
        if self.activations not in ACTIVATIONS:
            raise ValueError(
                f"--activations must be {' or '.join(ACTIVATIONS)} but got '{self.activations}'."
            )
        if self.prompt_text is not None and not self.prompt_text:
            raise ValueError("--prompt-text must not be empty.")

    def apply_threads(self) -> None:
        """Sets zmlx's threads; works until zmlx has started them."""
        if self.threads is not None:
            os.environ["ZMLX_NUM_THREADS"] = str(self.threads)


class Patcher(Protocol):
    """What `zmlx.patch` offers; a null run puts `Identity` in its place."""

    def patch(self, model: Any) -> Any: ...

    def unpatch(self, model: Any) -> Any: ...


class Identity:
    """Changes nothing: both sides are stock, and what differs is noise."""

    def patch(self, model: Any) -> Any:
        return model

    def unpatch(self, model: Any) -> Any:
        return model


class Patch:
    """`zmlx.patch` with options. Imported late: a null run needs no kernels."""

    def __init__(self, options: Options, **more: Any) -> None:
        self.options = {"activations": options.activations, **more}

    def patch(self, model: Any) -> Any:
        from zmlx.patch import patch

        return patch(model, **self.options)

    def unpatch(self, model: Any) -> Any:
        from zmlx.patch import unpatch

        return unpatch(model)


@dataclass(frozen=True)
class Share:
    """One side's work: the prompt's tokens and how many new ones to generate."""

    prompt: list[int]
    max_tokens: int


class Progress(Protocol):
    """Told what runs now and how many tokens of all work are done."""

    def __call__(self, doing: str, done: int, total: int) -> None: ...


def no_progress(doing: str, done: int, total: int) -> None:
    """For callers that show nothing."""


def load_model(options: Options) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Loads a preset (written first if needed), a folder or a Hugging Face name with `mlx_lm.load`.

    Returns the model, its tokenizer, its config and the facts for the result.
    """
    import mlx_lm
    from mlx.utils import tree_flatten

    name = options.model
    preset = None
    path = name
    if name in presets.PRESETS:
        dtype = options.dtype or "bfloat16"
        path = str(
            presets.write(
                name,
                dtype=dtype,
                bits=options.bits,
                group_size=options.group_size,
                layers=options.layers,
            )
        )
        preset = {"name": name, "dtype": dtype, "bits": options.bits, "layers": options.layers}
    elif options.layers is not None:
        raise ValueError("--layers cuts presets only, not a model of your own.")
    elif not Path(name).exists() and "/" not in name:
        raise ValueError(
            f"'{name}' is neither a folder nor a preset; presets: {', '.join(presets.PRESETS)}."
        )
    model, tokenizer, config = mlx_lm.load(path, return_config=True)
    if preset is None and options.dtype is not None:
        model.set_dtype(presets.DTYPES[options.dtype])
        mx.eval(model.parameters())
    weights = [array for _, array in tree_flatten(model.parameters())]
    floats = {str(w.dtype) for w in weights if mx.issubdtype(w.dtype, mx.floating)}
    quantization = config.get("quantization") or {}
    facts = {
        "name": name if preset else Path(name).name,
        "preset": preset,
        "model_type": config["model_type"],
        "layers": len(model.layers),
        "dtypes": sorted(name.rpartition(".")[2] for name in floats),
        "bits": quantization.get("bits"),
        "group_size": quantization.get("group_size"),
        "weight_bytes": sum(w.nbytes for w in weights),
    }
    return model, tokenizer, config, facts


def make_prompt(options: Options, tokenizer: Any, config: dict[str, Any]) -> list[int]:
    """The text's tokens, or `prompt_tokens` random ones that depend on the seed only."""
    if options.prompt_text is not None:
        return list(tokenizer.encode(options.prompt_text))
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    random = np.random.Generator(np.random.PCG64(options.seed))
    return random.integers(0, vocabulary, options.prompt_tokens).tolist()


@contextlib.contextmanager
def endless(tokenizer: Any) -> Iterator[None]:
    """No token ends a text, so that both sides always generate `max_tokens`."""
    ends = tokenizer.eos_token_ids
    tokenizer.eos_token_ids = set()
    try:
        yield
    finally:
        tokenizer.eos_token_ids = ends


def generate(
    model: Any,
    tokenizer: Any,
    share: Share,
    keep_top: bool = False,
    tick: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], list[list[tuple[int, float]]]]:
    """One greedy generation through `mlx_lm.stream_generate`: the run's figures and its tokens.

    `tick` gets the tokens done so far, after each token's time is taken. With `keep_top` the
    largest logits of every position come back too.
    """
    from mlx_lm.generate import generation_stream, stream_generate

    mx.synchronize(generation_stream)
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    resident = machine.ResidentPeak()
    times: list[float] = []
    tokens: list[int] = []
    top: list[list[tuple[int, float]]] = []
    response = None
    start = time.perf_counter()
    stream = stream_generate(model, tokenizer, share.prompt, max_tokens=share.max_tokens)
    try:
        for response in stream:
            times.append(time.perf_counter() - start)
            tokens.append(response.token)
            if keep_top:
                top.append(top_logits(response.logprobs))
            tick(len(share.prompt) + len(tokens))
    finally:
        stream.close()
        # mlx_lm has begun one token more than was asked for: it must not run into the next run.
        mx.synchronize(generation_stream)
    figures = {
        "prompt_tokens": len(share.prompt),
        "generated_tokens": len(tokens),
        "time_to_first_token_s": times[0],
        "total_s": times[-1],
        "prompt_tps": len(share.prompt) / times[0],
        "generation_tps": (len(tokens) - 1) / (times[-1] - times[0]) if len(tokens) > 1 else None,
        "mlx_lm_prompt_tps": response.prompt_tps,
        "mlx_lm_generation_tps": response.generation_tps,
        "peak_memory_bytes": mx.get_peak_memory(),
        "peak_resident_bytes": resident.bytes(),
        "tokens": tokens,
    }
    return figures, top


class Benchmark:
    """One comparison: runs in alternation, keeps the result document up to date and on disk."""

    def __init__(
        self,
        options: Options,
        out: Path | None = None,
        progress: Progress = no_progress,
        patcher: Patcher | None = None,
        command: list[str] | None = None,
    ) -> None:
        options.check()
        self.options = options
        self.out = out
        self.progress = progress
        self.patcher = patcher
        self.command = command
        self.done = 0
        self.total = 0
        self.patched = False
        self.stock_top: list[list[tuple[int, float]]] = []
        self.result: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Measures, and returns the capsule of kind "inference".

        After an exception or Ctrl-C the document, on disk too, says `"complete": false` and why.
        """
        self.options.apply_threads()
        if self.patcher is None:
            self.patcher = Identity() if self.options.null_run else Patch(self.options)
        self.progress("loading", 0, 0)
        model, tokenizer, config, facts = load_model(self.options)
        prompt = make_prompt(self.options, tokenizer, config)
        stock, patched = self._shares(prompt)
        order = alternate(self.options.stock_runs or self.options.runs, self.options.runs)
        self.result = self._document(facts, stock, patched, order)
        self.total = sum(
            len(share.prompt) + share.max_tokens
            for share in ({"stock": stock, "patched": patched}[variant] for variant in order)
        )
        with capsule.recording(self.result, self._save), endless(tokenizer):
            try:
                self._measure(model, tokenizer, stock, patched, order)
            finally:
                if self.patched:
                    self.patcher.unpatch(model)
        return self.result

    def _shares(self, prompt: list[int]) -> tuple[Share, Share]:
        options = self.options
        stock_prompt = prompt[: options.stock_prompt_tokens]
        stock_tokens = min(options.stock_max_tokens or options.max_tokens, options.max_tokens)
        return Share(stock_prompt, stock_tokens), Share(prompt, options.max_tokens)

    def _measure(
        self, model: Any, tokenizer: Any, stock: Share, patched: Share, order: list[str]
    ) -> None:
        shares = {"stock": stock, "patched": patched}
        short = Share(stock.prompt[:WARM_UP_TOKENS], 2)
        self.progress("stock: warm-up", self.done, self.total)
        generate(model, tokenizer, short)
        for index, variant in enumerate(order):
            self._switch(model, tokenizer, variant, patched)
            doing = f"{variant}: run {1 + order[:index].count(variant)}"
            first_stock = variant == "stock" and not self.stock_top
            figures, top = generate(
                model,
                tokenizer,
                shares[variant],
                keep_top=first_stock,
                tick=lambda done, doing=doing: self.progress(doing, self.done + done, self.total),
            )
            self.stock_top = top or self.stock_top
            self.done += len(shares[variant].prompt) + shares[variant].max_tokens
            self.result["runs"].append({"index": index, "variant": variant, **figures})
            if variant == "patched":
                self.result["patch"][-1]["report"] = report_of(model)
            if variant == "patched" and self.result["check"] is None:
                self._check(model, tokenizer, stock, patched, figures["tokens"])
            self._save()

    def _switch(self, model: Any, tokenizer: Any, variant: str, patched: Share) -> None:
        """Patches or unpatches if this run needs it. A fresh patch is warmed up by its prompt."""
        assert self.patcher is not None
        if variant == "stock" and self.patched:
            self.patcher.unpatch(model)
            self.patched = False
        if variant == "patched" and not self.patched:
            self.progress("patching", self.done, self.total)
            mx.reset_peak_memory()
            resident = machine.ResidentPeak()
            start = time.perf_counter()
            self.patcher.patch(model)
            seconds = time.perf_counter() - start
            self.patched = True
            self.progress("patched: warm-up", self.done, self.total)
            start = time.perf_counter()
            peaks = {
                "peak_memory_bytes": mx.get_peak_memory(),
                "peak_resident_bytes": resident.bytes(),
            }
            generate(
                model, tokenizer, Share(patched.prompt, min(WARM_UP_TOKENS, patched.max_tokens))
            )
            self.result["patch"].append(
                {
                    "seconds": seconds,
                    "warm_up_s": time.perf_counter() - start,
                    **peaks,
                    "report": report_of(model),
                }
            )

    def _check(
        self, model: Any, tokenizer: Any, stock: Share, patched: Share, tokens: list[int]
    ) -> None:
        """Gets the patched model's tokens for stock's own prompt, if that is a shorter one."""
        if stock.prompt != patched.prompt:
            self.progress("patched: check of stock's prompt", self.done, self.total)
            figures, _ = generate(model, tokenizer, stock)
            tokens = figures["tokens"]
        self.result["check"] = {"prompt_tokens": len(stock.prompt), "tokens": tokens}

    def _document(
        self, facts: dict[str, Any], stock: Share, patched: Share, order: list[str]
    ) -> dict[str, Any]:
        settings = {
            "runs": self.options.runs,
            "seed": self.options.seed,
            "prompt": "random" if self.options.prompt_text is None else "text",
            "threads": machine.threads(),
            "null_run": self.options.null_run,
            "activations": self.options.activations,
            "order": order,
            "stock": _settings(stock),
            "patched": _settings(patched),
        }
        return {
            **capsule.envelope("inference", facts, settings, self.command),
            "patch": [],
            "check": None,
            "runs": [],
            "fidelity": None,
            "summary": None,
        }

    def _save(self) -> None:
        self.result["finished"] = capsule.now()
        self.result["fidelity"] = fidelity(self.result, self.stock_top)
        self.result["summary"] = summary(self.result)
        if self.out is not None:
            capsule.write(self.out, self.result)


def fidelity(
    result: dict[str, Any], stock_top: list[list[tuple[int, float]]]
) -> dict[str, Any] | None:
    """Stock's first run against the patched model's tokens for the same prompt; None too early.

    `reproducible` says whether all runs of one side gave the same tokens.
    """
    runs = {
        variant: [run["tokens"] for run in result["runs"] if run["variant"] == variant]
        for variant in ("stock", "patched")
    }
    if result["check"] is None or not runs["stock"]:
        return None
    compared = compare_tokens(runs["stock"][0], result["check"]["tokens"], stock_top)
    same = {variant: all(t == tokens[0] for t in tokens) for variant, tokens in runs.items()}
    return {**compared, "reproducible": same}


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Median, minimum and maximum of each metric and side, and the patched model's gain.

    `gain` is above 1 where the patched model is better. It is None where the two sides did
    different work, and `differs` is false where their runs overlap.
    """
    settings = result["settings"]
    same_prompt = settings["stock"]["prompt_tokens"] == settings["patched"]["prompt_tokens"]
    same = {
        "nothing": True,
        "prompt": same_prompt,
        "all": same_prompt and settings["stock"] == settings["patched"],
    }
    found: dict[str, Any] = {}
    for metric in METRICS:
        sides = {
            variant: summarize(
                [run[metric.field] for run in result["runs"] if run["variant"] == variant]
            )
            for variant in ("stock", "patched")
        }
        found[metric.field] = {
            **{variant: side.as_dict() if side else None for variant, side in sides.items()},
            **_gain(metric, sides["stock"], sides["patched"], same[metric.needs]),
        }
    return found


def _gain(
    metric: Metric, stock: Summary | None, patched: Summary | None, comparable: bool
) -> dict[str, Any]:
    if stock is None or patched is None or not comparable:
        return {"gain": None, "differs": None}
    better, worse = (patched, stock) if metric.better == "higher" else (stock, patched)
    gain = better.median / worse.median if worse.median else None
    return {"gain": gain, "differs": differ(stock, patched)}


def report_of(model: Any) -> dict[str, Any] | None:
    """The patch report as plain JSON; None in a null run."""
    report = getattr(model, "zmlx", None)
    if report is None:
        return None
    return {
        "patched": report.patched,
        "patterns": dict(report.patterns),
        "int8": dict(report.int8),
        "exact": dict(report.exact),
        "nodes_before": report.nodes_before,
        "nodes_after": report.nodes_after,
        "launches": report.launches,
        "bytes_per_token": report.bytes_per_token,
        "reasons": list(report.reasons),
        "seconds": report.seconds,
        "stock_calls": dict(report.stock_calls),
    }


def _settings(share: Share) -> dict[str, int]:
    return {"prompt_tokens": len(share.prompt), "max_tokens": share.max_tokens}
