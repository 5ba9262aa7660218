# zmlx/kernels/deltanet.py: parts of a gated delta network's decode step.
"""Parts of the linear attention of Qwen3-Next and Qwen3.5 models."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, like


@accepts("threadgroup")
def fused_conv1d_silu(conv_input: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
    """One step of a causal depthwise convolution, with SiLU.

    Args:
        conv_input: [B, T, C], the last T - 1 tokens and the new one.
        weight: [C, T], or any shape of as many elements in this order, as a layer's [C, T, 1].

    Returns:
        [B, 1, C], and the tokens that the next step needs, [B, T - 1, C].
    """
    _, taps, channels = conv_input.shape
    if weight.size != taps * channels:
        raise ValueError(
            f"[fused_conv1d_silu] weight must be {taps} taps for each of {channels} channels "
            f"but got {weight.shape}."
        )
    (filters,) = like(conv_input, weight.reshape(channels, taps))
    return ops.conv1d_silu(conv_input[:, -1:], filters, conv_input[:, :-1])


@accepts("threadgroup")
def gated_rmsnorm_silu(
    y: mx.array, z: mx.array, weight: mx.array, *, eps: float = 1e-6
) -> mx.array:
    """rms_norm(y, weight) * silu(z) for y and z [.., N], weight [N]."""
    return ops.gated_rms_norm(y, *like(y, z, weight), eps=eps)


def fused_input_proj(
    x: mx.array, w_qkv: mx.array, w_z: mx.array, w_b: mx.array, w_a: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """x [B, S, K] @ w.T for four weights [N, K], which are not copied."""
    return tuple(x @ w.T for w in (w_qkv, w_z, w_b, w_a))


__all__ = ["fused_conv1d_silu", "fused_input_proj", "gated_rmsnorm_silu"]
