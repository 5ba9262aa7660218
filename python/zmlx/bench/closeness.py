# zmlx/bench/closeness.py: how far a side's logits and tokens lie from those of a reference.
"""Logits against a reference, position by position.

Both sides get the same tokens, so that every position compares like with like.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

# Two float32 runs differ in the order of their sums; relative to the logits' root mean square.
FLOAT32_NOISE = 1e-4
# By how much an error may exceed stock's and still count as no larger: errors have luck, too.
SLACK = 1.05

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Distance:
    """How far logits lie from the reference's, over steps and vocabulary."""

    rms: float  # root mean square of the differences
    largest: float  # largest absolute difference
    mean_kl: float  # Kullback-Leibler divergence from the reference, nats, mean over the steps
    worst_kl: float
    same_top: int  # steps whose most likely token is the reference's

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def distance(reference: Logits, logits: Logits) -> Distance:
    """Of two arrays of shape (steps, vocabulary)."""
    if reference.shape != logits.shape:
        raise ValueError(f"logits have shape {logits.shape} but the reference {reference.shape}.")
    difference = np.abs(logits.astype(np.float64) - reference)
    expected, got = (log_softmax(values) for values in (reference, logits))
    kl = (np.exp(expected) * (expected - got)).sum(-1)
    return Distance(
        rms=float(np.sqrt(np.mean(difference**2))),
        largest=float(difference.max()),
        mean_kl=float(kl.mean()),
        worst_kl=float(kl.max()),
        same_top=int((reference.argmax(-1) == logits.argmax(-1)).sum()),
    )


def noise_of(reference: Logits) -> float:
    """What float32's own rounding makes of these logits."""
    return FLOAT32_NOISE * float(np.sqrt(np.mean(reference.astype(np.float64) ** 2)))


def at_least_as_close(reference: Logits, stock: Distance, patched: Distance) -> bool:
    """Whether the patched model's error is not above stock's, or is only float32's own noise."""
    return patched.rms <= max(SLACK * stock.rms, noise_of(reference))


@dataclass(frozen=True)
class Parting:
    """Where a side's most likely token first differs from the reference's."""

    position: int  # 0 is the first new token
    token: int  # the side's
    reference_token: int
    margin: float  # the reference's top logit minus its second
    gap: float  # the reference's top logit minus its logit of the side's token

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def parting(reference: Logits, logits: Logits) -> Parting | None:
    """The first position where the greedy tokens differ; None when all are the same.

    Beyond it a greedy generation would be about another text.
    """
    expected, got = reference.argmax(-1), logits.argmax(-1)
    where = np.flatnonzero(expected != got)
    if not where.size:
        return None
    at = int(where[0])
    row = reference[at].astype(np.float64)
    second, top = np.partition(row, -2)[-2:]
    return Parting(
        at, int(got[at]), int(expected[at]), float(top - second), float(top - row[got[at]])
    )


@dataclass(frozen=True)
class Steps:
    """Logits of the positions after a prompt, the tokens that followed, and the time it took."""

    logits: Logits  # (steps, vocabulary)
    tokens: list[int]
    prompt_s: float
    decode_s: float


def run_steps(
    model: Any, prompt: Sequence[int], steps: int, tokens: Sequence[int] | None = None
) -> Steps:
    """The prompt but for its last token in one call, then `steps` calls of one token.

    So does `mlx_lm` generate. Without `tokens` each next token is the greedy one.
    """
    from mlx_lm.models.cache import make_prompt_cache

    cache = make_prompt_cache(model)
    start = time.perf_counter()
    if len(prompt) > 1:
        model(mx.array([prompt[:-1]]), cache=cache)
        mx.eval([entry.state for entry in cache])
    prompted = time.perf_counter()
    token = prompt[-1]
    found, chosen = [], []
    for step in range(steps):
        logits = model(mx.array([[token]]), cache=cache)[0, -1].astype(mx.float32)
        found.append(np.array(logits))
        token = int(found[-1].argmax()) if tokens is None else tokens[step]
        chosen.append(token)
    end = time.perf_counter()
    return Steps(np.stack(found), chosen, prompted - start, end - prompted)


def text_logits(model: Any, tokens: Sequence[int]) -> Logits:
    """The logits of all of a text's positions, in one call, as for a prompt."""
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def perplexity(logits: Logits, tokens: Sequence[int]) -> float:
    """exp of the mean negative log likelihood of each token after the first, nats."""
    likelihood = log_softmax(logits[:-1])[np.arange(len(tokens) - 1), tokens[1:]]
    return float(np.exp(-likelihood.mean()))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """In float64, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """The model with float32 activations; its own parameters are back afterwards."""
    parameters = model.parameters()
    model.set_dtype(mx.float32)
    try:
        yield
    finally:
        model.update(parameters)
