# zmlx/kernels/linear.py: a linear layer and what follows it.
"""x @ w.T for x [.., K] and w [N, K], then a bias and an activation, or a norm; float32 results."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import returns


def _linear(name: str, x: mx.array, w: mx.array, vector: mx.array, argument: str) -> mx.array:
    if w.ndim != 2 or x.shape[-1] != w.shape[1] or vector.shape != w.shape[:1]:
        raise ValueError(
            f"[{name}] expected x [.., K], w [N, K] and {argument} [N] but got "
            f"{x.shape}, {w.shape} and {vector.shape}."
        )
    return x.astype(mx.float32) @ w.astype(mx.float32).T


@returns(mx.float32)
def fused_linear_bias_silu(x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
    """silu(x @ w.T + bias)."""
    return ops.silu(_linear("fused_linear_bias_silu", x, w, bias, "bias") + bias)


@returns(mx.float32)
def fused_linear_bias_gelu(x: mx.array, w: mx.array, bias: mx.array) -> mx.array:
    """gelu_tanh(x @ w.T + bias)."""
    return ops.gelu_tanh(_linear("fused_linear_bias_gelu", x, w, bias, "bias") + bias)


@returns(mx.float32)
def fused_linear_rmsnorm(
    x: mx.array, w: mx.array, gamma: mx.array, *, eps: float = 1e-6
) -> mx.array:
    """rms_norm(x @ w.T, gamma)."""
    y = _linear("fused_linear_rmsnorm", x, w, gamma, "gamma")
    return ops.rms_norm(y, gamma.astype(y.dtype), eps)


__all__ = ["fused_linear_bias_gelu", "fused_linear_bias_silu", "fused_linear_rmsnorm"]
