# zmlx/kernels/discovered/glm_topk_gating.py: top-k routing, indices first.
"""Top-k routing whose result begins with the indices."""

from __future__ import annotations

import mlx.core as mx

from zmlx.kernels.moe import topk_gating_softmax


def glm_topk_gating(logits: mx.array, k: int = 4) -> tuple[mx.array, mx.array]:
    """(indices, weights) of the k largest logits, softmax over those; weights in logits' dtype."""
    weights, indices = topk_gating_softmax(logits, k)
    return indices, weights.astype(logits.dtype)


__all__ = ["glm_topk_gating"]
