# zmlx/bench/fidelity.py: where two runs' greedy tokens part, and how sure stock was there.
"""Comparison of greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

TOP = 5


def top_logits(logprobs: mx.array) -> list[tuple[int, float]]:
    """The `TOP` largest log probabilities of one position, as (token, value).

    `logprobs` has shape (vocabulary,). Its differences are differences of logits.
    """
    values = np.array(logprobs.astype(mx.float32)).reshape(-1)
    best = np.argsort(-values, kind="stable")[:TOP]
    return [(int(token), float(values[token])) for token in best]


def compare_tokens(
    stock: Sequence[int],
    patched: Sequence[int],
    stock_top: Sequence[Sequence[tuple[int, float]]] = (),
) -> dict[str, Any]:
    """Compares two greedy continuations of one prompt, over the length that both have.

    Returns `compared` (tokens), `equal` (all of them) and `first_difference`: None, or position
    (0 is the first new token), both tokens, `margin` (stock's top logit minus its second there)
    and `gap` (stock's top logit minus its logit of the patched token; None when that is not
    among stock's first `TOP`). After the first difference the two texts are different texts:
    nothing more is compared.
    """
    compared = min(len(stock), len(patched))
    position = next((i for i in range(compared) if stock[i] != patched[i]), None)
    if position is None:
        return {"compared": compared, "equal": True, "first_difference": None}
    margin = gap = None
    if position < len(stock_top):
        top = stock_top[position]
        margin = top[0][1] - top[1][1] if len(top) > 1 else None
        known = dict(top)
        if patched[position] in known:
            gap = top[0][1] - known[patched[position]]
    return {
        "compared": compared,
        "equal": False,
        "first_difference": {
            "position": position,
            "stock_token": stock[position],
            "patched_token": patched[position],
            "margin": margin,
            "gap": gap,
        },
    }
