# zmlx/kernels/scan.py: running sums along the last axis.
"""Running sums and their gradient."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts


@accepts("threadgroup", "compute_dtype")
def cumsum_lastdim(x: mx.array) -> mx.array:
    """The sum of each row from its begin to each element."""
    return ops.cumsum(x)


@accepts("threadgroup", "compute_dtype")
def cumsum_grad(cotan: mx.array) -> mx.array:
    """The gradient of x from that of cumsum_lastdim(x): sums from each element to the end."""
    return ops.cumsum(cotan[..., ::-1])[..., ::-1]


__all__ = ["cumsum_grad", "cumsum_lastdim"]
