# zmlx/kernels/softmax.py: softmax along the last axis.
"""Softmax, its logarithm and its gradient, along the last axis."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts


@accepts("threadgroup", "compute_dtype")
def softmax_lastdim(x: mx.array) -> mx.array:
    """softmax(x)."""
    return ops.softmax(x)


@accepts("threadgroup", "compute_dtype")
def log_softmax_lastdim(x: mx.array) -> mx.array:
    """log(softmax(x))."""
    return ops.log_softmax(x)


@accepts("threadgroup", "compute_dtype")
def softmax_grad(y: mx.array, cotan: mx.array) -> mx.array:
    """The gradient of x from y = softmax(x) and the gradient `cotan` of y."""
    wide, slope = y.astype(mx.float32), cotan.astype(mx.float32)
    along = (wide * slope).sum(-1, keepdims=True)
    return (wide * (slope - along)).astype(y.dtype)


__all__ = ["log_softmax_lastdim", "softmax_grad", "softmax_lastdim"]
