# zmlx/kernels/attention.py: masked softmax, and attention over a cache in blocks.
"""Softmax with masks, and attention of one query a sequence over a paged cache."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, like


@accepts("threadgroup", "compute_dtype")
def logsumexp_lastdim(x: mx.array) -> mx.array:
    """log(sum(exp(x))) of each row: x [.., N] to [..]."""
    return ops.logsumexp(x)


@accepts("threadgroup", "compute_dtype")
def masked_softmax(x: mx.array, mask: mx.array) -> mx.array:
    """softmax over the elements whose mask (bool, broadcast to x) is true, 0 elsewhere.

    A row without any such element is 0.
    """
    return ops.masked_softmax(x, mask.astype(mx.bool_))


@accepts("threadgroup", "compute_dtype")
def scale_mask_softmax(x: mx.array, mask: mx.array, scale: float) -> mx.array:
    """masked_softmax(scale * x, mask)."""
    return ops.scale_mask_softmax(x, mask.astype(mx.bool_), scale)


def attention_tile_proto(q: mx.array, k: mx.array) -> mx.array:
    """q @ k.T in float32 for q and k [16, D]."""
    if q.ndim != 2 or q.shape[0] != 16 or q.shape != k.shape:
        raise ValueError(
            f"[attention_tile_proto] q and k must both be (16, D) but got {q.shape} and {k.shape}."
        )
    return q.astype(mx.float32) @ k.astype(mx.float32).T


@accepts("threadgroup")
def paged_attention(
    q: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    block_table: mx.array,
    context_lens: mx.array,
    scale: float | None = None,
    *,
    max_context: int = 4096,
) -> mx.array:
    """Attention of one query a sequence over its blocks of a cache: [B, H, D].

    Args:
        q: [B, H, D].
        k_cache, v_cache: [blocks, size of a block, KV heads, D].
        block_table: [B, most blocks of a sequence], indices of blocks.
        context_lens: [B], tokens of each sequence; a sequence without any gives 0.
        scale: of the scores, by default 1 / sqrt(D).
        max_context: accepted and not needed: no context is too long.
    """
    return ops.paged_attention(q, *like(q, k_cache, v_cache), block_table, context_lens, scale)


__all__ = [
    "attention_tile_proto",
    "logsumexp_lastdim",
    "masked_softmax",
    "paged_attention",
    "scale_mask_softmax",
]
