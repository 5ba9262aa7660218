# zmlx/kernels/softmax.py: softmax along the last axis.
"""Softmax, its logarithm and its gradient, along the last axis."""

from __future__ import annotations

import mlx.core as mx

from zmlx import _ext, ops
from zmlx.kernels.options import accepts, like


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
    return _ext.apply("softmax_backward", [y, *like(y, cotan), mx.array(1.0)])[0]


__all__ = ["log_softmax_lastdim", "softmax_grad", "softmax_lastdim"]
