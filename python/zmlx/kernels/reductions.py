# zmlx/kernels/reductions.py: sums, extremes and their places along the last axis.
"""Reductions of x [.., N] to [..], in x's dtype."""

from __future__ import annotations

import mlx.core as mx

import zmlx
from zmlx import ops
from zmlx.kernels.options import accepts, returns

_SUM, _MEAN = (zmlx.reduce(op, -1) for op in ("sum", "mean"))


@accepts("threadgroup", "compute_dtype")
def sum_lastdim(x: mx.array, *, kahan: bool = False) -> mx.array:
    """The sum; with `kahan` added up in double precision, which no order of a row defeats."""
    return _SUM(x) if kahan else ops.sum(x)


@accepts("threadgroup", "compute_dtype")
def mean_lastdim(x: mx.array, *, kahan: bool = False) -> mx.array:
    """The mean; `kahan` as in sum_lastdim."""
    return _MEAN(x) if kahan else ops.mean(x)


@accepts("threadgroup", "compute_dtype")
def max_lastdim(x: mx.array) -> mx.array:
    """The largest element."""
    return ops.max(x)


@accepts("threadgroup", "compute_dtype")
def var_lastdim(x: mx.array) -> mx.array:
    """mean((x - mean(x))^2)."""
    return ops.var(x)


@accepts("threadgroup", "compute_dtype")
def std_lastdim(x: mx.array, *, eps: float = 1e-6) -> mx.array:
    """sqrt(var(x) + eps)."""
    return mx.sqrt(ops.var(x).astype(mx.float32) + eps).astype(x.dtype)


@accepts("threadgroup")
def argmax_lastdim(x: mx.array) -> mx.array:
    """The index (uint32) of the largest element, the lowest one of equal elements."""
    return ops.argmax(x)


@accepts("threadgroup")
@returns(mx.float32)
def topk_lastdim(x: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest elements, descending, and their indices (uint32): [.., k] both.

    Of equal elements the one of lower index comes first. The values are float32.
    """
    return ops.topk(x, k=k)


__all__ = [
    "argmax_lastdim",
    "max_lastdim",
    "mean_lastdim",
    "std_lastdim",
    "sum_lastdim",
    "topk_lastdim",
    "var_lastdim",
]
