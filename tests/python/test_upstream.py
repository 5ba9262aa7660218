# tests/python/test_upstream.py: references of docs/upstream.md against our ops.
from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from kernel_testing import close, normal

from zmlx import ops

PAGE = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()


def references() -> dict[str, Any]:
    values: dict[str, Any] = {"mx": mx, "math": math}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, values)
    return values


PLAIN = references()


def test_gated_units() -> None:
    gate, up = normal(3, 33), normal(3, 33, seed=1)
    both = mx.concatenate([gate, up], -1)
    close(ops.swiglu(gate, up), PLAIN["swiglu"](gate, up))
    for approximate in (False, True):
        close(ops.geglu(both, approximate=approximate), PLAIN["geglu"](gate, up, approximate), 1e-4)


def test_dropout_has_the_mask_of_the_reference() -> None:
    x, key = normal(7, 33), mx.random.key(5)
    close(ops.dropout(x, 0.3, key), PLAIN["dropout"](x, 0.3, key))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_gating(scores: str, normalise: bool, biased: bool) -> None:
    logits = mx.round(normal(9, 64) * 2) / 2  # with ties
    bias = [normal(64, seed=1)] if biased else []
    got = ops.moe_topk_gating(logits, *bias, k=8, scores=scores, normalise=normalise)
    want = PLAIN["moe_topk_gating"](logits, 8, scores, normalise, *bias)
    np.testing.assert_array_equal(np.array(got[1]), np.array(want[1]))
    close(got[0], want[0])


def test_gather_add() -> None:
    table, x, indices = normal(11, 33), normal(4, 33, seed=1), mx.array([3, 0, 10, 3])
    close(ops.gather_add(table, indices, x), PLAIN["gather_add"](table, indices, x))
