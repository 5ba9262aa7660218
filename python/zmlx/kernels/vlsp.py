# zmlx/kernels/vlsp.py: parts of recurrent-depth models and of group-relative policy optimisation.
"""A recurrent step, a gate of depth, advantages of a group, and a gated unit with residual."""

from __future__ import annotations

import mlx.core as mx

import zmlx
from zmlx.kernels.options import accepts, like

_STEP = zmlx.rowwise(
    "h + alpha * silu(h * rsqrt(row_mean(h * h) + eps) * w) * gate",
    inputs=("h", "w", "gate", "alpha", "eps"),
    name="fused_recurrent_step",
)
_ADVANTAGE = zmlx.rowwise(
    "c = r - row_mean(r); c / (sqrt(row_mean(c * c)) + eps)",
    inputs=("r", "eps"),
    name="grpo_advantage_norm",
)
_DEPTH = zmlx.elementwise("k * sigmoid(x)", inputs=("x", "k"), name="depth_gate_sigmoid")
_UNIT = zmlx.elementwise(
    "silu(gate) * up + residual", inputs=("gate", "up", "residual"), name="silu_mul_residual"
)


@accepts("threadgroup")
def fused_recurrent_step(
    h: mx.array, w_norm: mx.array, gate: mx.array, alpha: mx.array | float, *, eps: float = 1e-6
) -> mx.array:
    """h + alpha * silu(rms_norm(h, w_norm)) * gate for h and gate [.., N], w_norm [N]."""
    if isinstance(alpha, mx.array):
        (alpha,) = like(h, alpha)
    return _STEP(h, *like(h, w_norm, gate), alpha, eps)


def depth_gate_sigmoid(x: mx.array, *, k_max: int = 8) -> mx.array:
    """k_max * sigmoid(x)."""
    return _DEPTH(x, k_max)


@accepts("threadgroup")
def grpo_advantage_norm(rewards: mx.array, *, eps: float = 1e-6) -> mx.array:
    """(r - mean(r)) / (std(r) + eps) along the last axis, a group (Shao et al., 2024)."""
    return _ADVANTAGE(rewards, eps)


def silu_mul_residual(gate: mx.array, up: mx.array, residual: mx.array) -> mx.array:
    """silu(gate) * up + residual."""
    return _UNIT(gate, *like(gate, up, residual))


__all__ = [
    "depth_gate_sigmoid",
    "fused_recurrent_step",
    "grpo_advantage_norm",
    "silu_mul_residual",
]
