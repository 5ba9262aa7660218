# zmlx/kernels/norms.py: RMS and layer norms along the last axis.
"""Norms of x [.., N]; weights are [N], and taken in x's dtype."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, like
from zmlx.kernels.transformer import key_of, rmsnorm_residual


@accepts("threadgroup", "compute_dtype")
def rmsnorm(x: mx.array, weight: mx.array, *, eps: float = 1e-6) -> mx.array:
    """x * rsqrt(mean(x^2) + eps) * weight. The gradient of the weight is summed over rows."""
    return ops.rms_norm(x, *like(x, weight), eps=eps)


@accepts("threadgroup", "compute_dtype")
def rmsnorm_grad(x: mx.array, weight: mx.array, cotan: mx.array, *, eps: float = 1e-6) -> mx.array:
    """The gradient of x in `rmsnorm` from the gradient `cotan` of its result."""
    return mx.vjp(lambda x: rmsnorm(x, weight, eps=eps), [x], like(x, cotan))[1][0]


@accepts("threadgroup", "compute_dtype")
def rms_norm_no_weight(x: mx.array, *, eps: float = 1e-6) -> mx.array:
    """x * rsqrt(mean(x^2) + eps)."""
    return ops.rms_norm(x, eps=eps)


@accepts("threadgroup", "compute_dtype")
def layernorm(
    x: mx.array, gamma: mx.array, beta: mx.array | None, *, eps: float = 1e-5
) -> mx.array:
    """(x - mean(x)) / sqrt(var(x) + eps) * gamma + beta; beta may be None."""
    return ops.layer_norm(x, *like(x, *(w for w in (gamma, beta) if w is not None)), eps=eps)


@accepts("threadgroup", "compute_dtype")
def layer_norm_no_weight(x: mx.array, *, eps: float = 1e-5) -> mx.array:
    """(x - mean(x)) / sqrt(var(x) + eps)."""
    return ops.layer_norm(x, eps=eps)


@accepts("threadgroup", "compute_dtype")
def layer_norm_dropout(
    x: mx.array,
    gamma: mx.array,
    beta: mx.array | None,
    p: float,
    seed: int | None = None,
    *,
    eps: float = 1e-5,
) -> mx.array:
    """dropout(layernorm(x, gamma, beta), p, seed)."""
    weights = like(x, *(w for w in (gamma, beta) if w is not None))
    return ops.layer_norm_dropout(x, *weights, p=p, key=key_of(seed), eps=eps)


@accepts("threadgroup")
def residual_rmsnorm(
    x: mx.array, residual: mx.array, weight: mx.array, *, eps: float = 1e-6
) -> mx.array:
    """rmsnorm(x + residual, weight)."""
    return rmsnorm_residual(x, residual, weight, eps=eps)[0]


@accepts("threadgroup")
def add_rms_norm(
    x: mx.array, residual: mx.array, weight: mx.array, *, eps: float = 1e-6
) -> tuple[mx.array, mx.array]:
    """(rmsnorm(x + residual, weight), x + residual)."""
    return rmsnorm_residual(x, residual, weight, eps=eps)


__all__ = [
    "add_rms_norm",
    "layer_norm_dropout",
    "layer_norm_no_weight",
    "layernorm",
    "residual_rmsnorm",
    "rms_norm_no_weight",
    "rmsnorm",
    "rmsnorm_grad",
]
