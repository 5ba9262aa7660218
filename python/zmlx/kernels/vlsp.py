# zmlx/kernels/vlsp.py: parts of recurrent-depth models and of group-relative policy optimisation.
"""A recurrent step, a gate of depth, advantages of a group, and a gated unit with residual."""

from __future__ import annotations

import mlx.core as mx

from zmlx import elementwise, ops
from zmlx.kernels.options import accepts, like

_STEP = elementwise(
    "h + alpha * silu(normed) * gate", inputs=("h", "alpha", "normed", "gate"), name="recurrent"
)
_DEPTH = elementwise("k * sigmoid(x)", inputs=("x", "k"), name="depth_gate_sigmoid")
_UNIT = elementwise(
    "silu(gate) * up + residual", inputs=("gate", "up", "residual"), name="silu_mul_residual"
)


@accepts("threadgroup")
def fused_recurrent_step(
    h: mx.array, w_norm: mx.array, gate: mx.array, alpha: mx.array | float, *, eps: float = 1e-6
) -> mx.array:
    """h + alpha * silu(rms_norm(h, w_norm)) * gate for h and gate [.., N], w_norm [N]."""
    if isinstance(alpha, mx.array):
        (alpha,) = like(h, alpha)
    return _STEP(h, alpha, ops.rms_norm(h, *like(h, w_norm), eps=eps), *like(h, gate))


def depth_gate_sigmoid(x: mx.array, *, k_max: int = 8) -> mx.array:
    """k_max * sigmoid(x)."""
    return _DEPTH(x, k_max)


@accepts("threadgroup")
def grpo_advantage_norm(rewards: mx.array, *, eps: float = 1e-6) -> mx.array:
    """(r - mean(r)) / (std(r) + eps) along the last axis, a group (Shao et al., 2024)."""
    wide = rewards.astype(mx.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    return (centred / (mx.sqrt((centred * centred).mean(-1, keepdims=True)) + eps)).astype(
        rewards.dtype
    )


def silu_mul_residual(gate: mx.array, up: mx.array, residual: mx.array) -> mx.array:
    """silu(gate) * up + residual."""
    return _UNIT(gate, *like(gate, up, residual))


__all__ = [
    "depth_gate_sigmoid",
    "fused_recurrent_step",
    "grpo_advantage_norm",
    "silu_mul_residual",
]
