# zmlx/kernels/loss.py: cross entropy of a softmax.
"""Softmax cross entropy of logits [.., N] and targets [..]."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, returns


@accepts("threadgroup")
@returns(mx.float32)
def softmax_cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """logsumexp(logits) - logits[target] of each row, in float32.

    A row whose target is -100 does not count: 0. Any other target outside the row is an error.
    """
    return ops.softmax_cross_entropy(logits, targets)


@accepts("threadgroup", "compute_dtype")
def softmax_cross_entropy_grad(logits: mx.array, targets: mx.array, cotan: mx.array) -> mx.array:
    """The gradient of logits, in their dtype, from the gradient `cotan` [..] of the losses."""
    loss = [cotan.astype(mx.float32)]
    return mx.vjp(lambda x: softmax_cross_entropy(x, targets), [logits], loss)[1][0]


__all__ = ["softmax_cross_entropy", "softmax_cross_entropy_grad"]
