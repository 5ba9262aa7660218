# zmlx/nn.py: layers made of the kernel catalogue's functions.
"""`MoE` and `PagedAttention` as layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn
import numpy as np

from zmlx import ops
from zmlx.kernels.attention import paged_attention
from zmlx.kernels.moe import topk_gating_softmax


class PagedAttention(mlx.nn.Module):
    """Attention of one query a sequence over a cache in blocks: zmlx.kernels.attention.

    Args:
        n_heads, n_kv_heads, head_dim: of queries and cache.
        scale: of the scores, by default 1 / sqrt(head_dim).
    """

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, scale: float | None = None):
        super().__init__()
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5 if scale is None else scale

    def __call__(
        self,
        q: mx.array,
        k_cache: mx.array,
        v_cache: mx.array,
        block_table: mx.array,
        context_lens: mx.array,
    ) -> mx.array:
        """[B, H, D]; the arguments are those of `paged_attention`."""
        return paged_attention(q, k_cache, v_cache, block_table, context_lens, self.scale)


class MoE(mlx.nn.Module):
    """A mixture of experts: each token runs through the k experts that the gate chooses.

    An expert is called once, with the rows of all its tokens. Which tokens those are is read from
    the device, so a call evaluates the gate and cannot be part of `mx.compile`.

    Args:
        gate: gives logits [.., E] for x [.., D].
        experts: E layers from [rows, D] to [rows, D].
        k: experts for each token.
    """

    def __init__(
        self,
        gate: Callable[[mx.array], mx.array],
        experts: Sequence[Callable[[mx.array], mx.array]],
        k: int = 2,
    ):
        super().__init__()
        self.gate = gate
        self.experts = list(experts)
        self.k = k

    def __call__(self, x: mx.array) -> mx.array:
        """x [.., D] to [.., D]: the chosen experts' outputs, weighted with a softmax."""
        rows = x.reshape(-1, x.shape[-1])
        logits = self.gate(rows)
        if logits.shape[-1] != len(self.experts):
            raise ValueError(
                f"[MoE] the gate must give a logit for each of {len(self.experts)} experts "
                f"but gave {logits.shape[-1]}."
            )
        weights, indices = topk_gating_softmax(logits, self.k)
        if rows.shape[0] == 0:
            return x
        sorted_rows, experts, order = ops.moe_dispatch(rows, indices)
        ends = np.cumsum(np.bincount(np.array(experts), minlength=len(self.experts)))
        parts = mx.split(sorted_rows, ends[:-1].tolist())
        outputs = [
            expert(part) for expert, part in zip(self.experts, parts, strict=True) if part.shape[0]
        ]
        return ops.moe_combine(mx.concatenate(outputs), weights, order=order).reshape(x.shape)


__all__ = ["MoE", "PagedAttention"]
