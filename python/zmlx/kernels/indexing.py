# zmlx/kernels/indexing.py: rows by index, gathered and scattered.
"""Gather and scatter of rows, each with its addition."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, like, returns


@accepts("compute_dtype")
def fused_gather_add(src: mx.array, indices: mx.array, other: mx.array) -> mx.array:
    """src[indices] + other for src [R, N], indices [..] and other [.., N]."""
    return ops.gather_add(src, indices, *like(src, other))


@returns(mx.float32)
def fused_scatter_add(indices: mx.array, updates: mx.array, out_shape: tuple[int, int]) -> mx.array:
    """Zeros [R, N] to which updates [M, N] are added at rows indices [M]; summed in float32."""
    rows, width = out_shape
    if updates.shape[-1] != width:
        raise ValueError(
            f"[fused_scatter_add] out_shape must be (rows, {updates.shape[-1]}), as updates, "
            f"but got {tuple(out_shape)}."
        )
    return ops.scatter_add(indices, updates.astype(mx.float32), rows)


__all__ = ["fused_gather_add", "fused_scatter_add"]
