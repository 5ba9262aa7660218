# tests/python/op_inputs.py: inputs of the tests of ops: random arrays by seed, strides, dtypes.
from __future__ import annotations

import mlx.core as mx
from hypothesis import strategies as st
from kernel_testing import DTYPES

dtypes = st.sampled_from(DTYPES)


def normal(shape: tuple[int, ...], seed: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def strided(x: mx.array) -> mx.array:
    """The same values with the last two axes swapped in memory."""
    return mx.contiguous(x.swapaxes(-1, -2)).swapaxes(-1, -2)
