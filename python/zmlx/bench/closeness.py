# zmlx/bench/closeness.py: how far stock's and the patched model's logits lie from a float32 run.
"""Logits against float32.

The reference is stock MLX with the same weights and float32 activations. It chooses the tokens;
stock and the patched model get these very tokens, so that every step compares like with like.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from zmlx.bench import machine
from zmlx.bench.inference import (
    Identity,
    Options,
    Patcher,
    Progress,
    command_line,
    load_model,
    make_prompt,
    no_progress,
    now,
    zmlx_patcher,
)

SCHEMA_VERSION = 1
# Two float32 runs differ in the order of their sums; relative to the logits' root mean square.
FLOAT32_NOISE = 1e-4

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Distance:
    """How far logits lie from the reference's, over steps and vocabulary."""

    rms: float  # root mean square of the differences
    largest: float  # largest absolute difference
    mean_kl: float  # Kullback-Leibler divergence from the reference, nats, mean over the steps
    worst_kl: float
    same_top: int  # steps whose most likely token is the reference's


def distance(reference: Logits, logits: Logits) -> Distance:
    """Of two arrays of shape (steps, vocabulary)."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits have shape {logits.shape} but the reference {reference.shape}.")
    difference = np.abs(logits.astype(np.float64) - reference)
    expected, got = (_log_softmax(values) for values in (reference, logits))
    kl = (np.exp(expected) * (expected - got)).sum(-1)
    return Distance(
        rms=float(np.sqrt(np.mean(difference**2))),
        largest=float(difference.max()),
        mean_kl=float(kl.mean()),
        worst_kl=float(kl.max()),
        same_top=int((reference.argmax(-1) == logits.argmax(-1)).sum()),
    )


def at_least_as_close(reference: Logits, stock: Distance, patched: Distance) -> bool:
    """Whether the patched model's error is not above stock's, or is only float32's own noise."""
    scale = float(np.sqrt(np.mean(reference.astype(np.float64) ** 2)))
    return patched.rms <= max(stock.rms, FLOAT32_NOISE * scale)


def step_logits(
    model: Any, prompt: Sequence[int], steps: int, tokens: Sequence[int] | None = None
) -> tuple[Logits, list[int]]:
    """The logits of `steps` positions after a prompt, and the tokens that led there.

    The prompt but for its last token is one call, then each call is one token, as `mlx_lm`
    generates. Without `tokens` each next token is the greedy one.
    """
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=cache)
        mx.eval([entry.state for entry in cache])
    token = prompt[-1]
    found, chosen = [], []
    for step in range(steps):
        logits = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
        found.append(np.array(logits))
        token = int(found[-1].argmax()) if tokens is None else tokens[step]
        chosen.append(token)
    return np.stack(found), chosen


def validate(
    options: Options,
    steps: int = 32,
    progress: Progress = no_progress,
    patcher: Patcher | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Runs float32, stock and patched, and returns the document of `validation.schema.json`.

    Of the options, model, dtype, bits, group size, layers, seed, prompt and threads count.
    """
    options.check()
    if steps < 1:
        raise ValueError(f"--steps must be 1 or more but got {steps}.")
    options.apply_threads()
    patcher = patcher or (Identity() if options.null_run else zmlx_patcher())
    progress("loading", 0, 0)
    model, tokenizer, config, facts = load_model(options)
    prompt = make_prompt(options, tokenizer, config)
    started = now()
    progress("float32", 0, 3)
    reference, tokens = _float32_logits(model, prompt, steps)
    progress("stock", 1, 3)
    stock_logits, _ = step_logits(model, prompt, steps, tokens)
    progress("patched", 2, 3)
    patcher.patch(model)
    try:
        patched_logits, _ = step_logits(model, prompt, steps, tokens)
    finally:
        patcher.unpatch(model)
    stock, patched = (distance(reference, logits) for logits in (stock_logits, patched_logits))
    return {
        "kind": "validation",
        "schema_version": SCHEMA_VERSION,
        "started": started,
        "finished": now(),
        "command": command if command is not None else command_line(),
        "environment": machine.environment(),
        "machine": machine.machine(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "model": facts,
        "settings": {
            "prompt_tokens": len(prompt),
            "steps": steps,
            "seed": options.seed,
            "threads": machine.threads(),
            "null_run": options.null_run,
        },
        "stock": vars(stock),
        "patched": vars(patched),
        "at_least_as_close": at_least_as_close(reference, stock, patched),
    }


def _float32_logits(model: Any, prompt: Sequence[int], steps: int) -> tuple[Logits, list[int]]:
    """`step_logits` of the model in float32; its own parameters are back afterwards."""
    parameters = model.parameters()
    model.set_dtype(mx.float32)
    try:
        return step_logits(model, prompt, steps)
    finally:
        model.update(parameters)


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
