# tests/python/kernel_testing.py: a function of arrays against a reference in double precision.
"""What the tests of the kernel catalogue share: inputs, comparisons and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

TOLERANCE = {mx.float32: 2e-5, mx.float16: 3e-3, mx.bfloat16: 2.4e-2}
DTYPES = list(TOLERANCE)
Function = Callable[..., Any]


# Those of mlx.nn are compiled at run time for each dtype.
def silu(x: mx.array) -> mx.array:
    return x * mx.sigmoid(x)


def gelu_tanh(x: mx.array) -> mx.array:
    return 0.5 * x * (1 + mx.tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def exact(x: Any) -> np.ndarray:
    """The array in double precision."""
    if not isinstance(x, mx.array):
        return np.asarray(x, np.float64)
    wide = x if x.dtype == mx.float64 else x.astype(mx.float32)
    return np.array(wide).astype(np.float64)


def close(got: mx.array, want: Any, tolerance: float | None = None) -> None:
    """Within the dtype's tolerance of the larger of an element and the array's typical size."""
    want, values = exact(want), exact(got)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(values[~finite], want[~finite])
    typical = np.sqrt(np.mean(want[finite] ** 2)) if finite.any() else 0.0
    bound = (tolerance or TOLERANCE[got.dtype]) * np.maximum(np.abs(want[finite]), typical)
    assert np.all(np.abs(values[finite] - want[finite]) <= bound + 1e-30)


def _several(result: Any) -> list[mx.array]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _floating(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)


def cast(inputs: Sequence[Any], dtype: mx.Dtype) -> list[Any]:
    return [x.astype(dtype) if _floating(x) else x for x in inputs]


def agree(
    function: Function,
    reference: Function,
    inputs: Sequence[Any],
    *,
    dtypes: Sequence[mx.Dtype] = DTYPES,
    gives: mx.Dtype | None = None,
    slopes: bool = True,
    tolerance: float | None = None,
) -> None:
    """Compares with a reference in MLX, which runs in float64.

    Values for each dtype; and, with `slopes`, the gradients of all floating inputs in float32 with
    those of the reference and with finite differences of it.

    Args:
        gives: the dtype of floating results, where it is not that of the inputs.
    """
    for dtype in dtypes:
        narrow = cast(inputs, dtype)
        got = _several(function(*narrow))
        want = _several(reference(*cast(narrow, mx.float64)))
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            if _floating(a):
                assert a.dtype == (gives or dtype)
                close(a, b, tolerance or TOLERANCE[dtype])
            else:
                np.testing.assert_array_equal(np.array(a), np.array(b))
    if slopes:
        _slopes_agree(function, reference, list(inputs))


def _slopes_agree(function: Function, reference: Function, inputs: list[Any]) -> None:
    places = [i for i, x in enumerate(inputs) if _floating(x)]

    def loss(of: Function) -> Function:
        def total(*arrays: Any) -> mx.array:
            results = [y for y in _several(of(*arrays)) if _floating(y)]
            return sum((y * mx.cos(mx.arange(y.size).reshape(y.shape))).sum() for y in results)

        return total

    got = _several(mx.grad(loss(function), argnums=places)(*inputs))
    wide = cast(inputs, mx.float64)
    want = _several(mx.grad(loss(reference), argnums=places)(*wide))
    for place, a, b in zip(places, got, want, strict=True):
        close(a, b, 1e-4)
        # The step is large, as MLX's exp is as exact in float64 as it is in float32.
        along, step = normal(*inputs[place].shape, seed=99).astype(mx.float64), 3e-3
        ends = [
            loss(reference)(*wide[:place], wide[place] + sign * step * along, *wide[place + 1 :])
            for sign in (1, -1)
        ]
        difference = (ends[0] - ends[1]).item() / (2 * step)
        slope = float((exact(a) * exact(along)).sum())
        size = float(np.sqrt((exact(a) ** 2).sum())) + 1
        assert abs(slope - difference) <= 2e-4 * size * max(1, np.sqrt(along.size))
