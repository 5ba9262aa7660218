# zmlx/kernels/transformer.py: gated units, dropout, and norms of a sum.
"""Parts of a transformer's block: x [.., N], weights [N]."""

from __future__ import annotations

import mlx.core as mx

from zmlx import elementwise, ops
from zmlx.kernels.options import accepts, like

_GATED = {
    name: elementwise(
        f"{activation}(gate + gate_bias) * (up + up_bias)",
        inputs=("gate", "gate_bias", "up", "up_bias"),
        name=name,
    )
    for name, activation in (("bias_swiglu", "silu"), ("bias_geglu", "gelu_tanh"))
}


@accepts("compute_dtype")
def swiglu(x: mx.array) -> mx.array:
    """silu(x[.., :N]) * x[.., N:] for x [.., 2N], computed in float32."""
    return ops.swiglu(x)


@accepts("compute_dtype")
def swiglu2(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up."""
    return ops.silu_mul(gate, up)


@accepts("compute_dtype")
def geglu(x: mx.array) -> mx.array:
    """gelu_tanh(x[.., :N]) * x[.., N:] for x [.., 2N]."""
    return ops.geglu(x, approximate=True)


@accepts("compute_dtype")
def geglu2(gate: mx.array, up: mx.array) -> mx.array:
    """gelu_tanh(gate) * up."""
    return ops.geglu(gate, up, approximate=True)


def _bias_gated(name: str, x: mx.array, bias: mx.array) -> mx.array:
    if x.shape[-1] % 2 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"[{name}] x's last axis must be even and bias must have its length but got "
            f"{x.shape} and {bias.shape}."
        )
    (gate, up), (gate_bias, up_bias) = (mx.split(a, 2, axis=-1) for a in (x, *like(x, bias)))
    return _GATED[name](gate, gate_bias, up, up_bias)


@accepts("compute_dtype")
def bias_swiglu(x: mx.array, bias: mx.array) -> mx.array:
    """swiglu(x + bias) for x [.., 2N] and bias [2N], whose gradient is summed over rows."""
    return _bias_gated("bias_swiglu", x, bias)


@accepts("compute_dtype")
def bias_geglu(x: mx.array, bias: mx.array) -> mx.array:
    """geglu(x + bias) for x [.., 2N] and bias [2N], whose gradient is summed over rows."""
    return _bias_gated("bias_geglu", x, bias)


def key_of(seed: int | None) -> mx.array | None:
    """The key of a seed; None for the next of MLX's global generator."""
    return None if seed is None else mx.random.key(seed)


@accepts("compute_dtype")
def dropout(x: mx.array, p: float, seed: int | None = None) -> mx.array:
    """x / (1 - p) where a random number is at least p, else 0; the gradient has the same mask.

    Args:
        p: the probability of dropping an element, from 0 to 1.
        seed: of the mask; None draws another mask for each call, from MLX's global generator.
    """
    return ops.dropout(x, p, key_of(seed))


@accepts("threadgroup", "compute_dtype")
def rms_norm_dropout(
    x: mx.array, weight: mx.array, p: float, seed: int | None = None, *, eps: float = 1e-6
) -> mx.array:
    """dropout(rms_norm(x, weight), p, seed)."""
    return ops.rms_norm_dropout(x, *like(x, weight), p=p, key=key_of(seed), eps=eps)


@accepts("threadgroup", "compute_dtype")
def rmsnorm_residual(
    x: mx.array, residual: mx.array, weight: mx.array, *, eps: float = 1e-6
) -> tuple[mx.array, mx.array]:
    """(rms_norm(x + residual, weight), x + residual)."""
    return ops.add_rms_norm(x, *like(x, residual, weight), eps=eps)


@accepts("threadgroup", "compute_dtype")
def fused_add_rmsnorm(
    x1: mx.array, x2: mx.array, weight: mx.array, *, eps: float = 1e-6
) -> mx.array:
    """rms_norm(x1 + x2, weight)."""
    return rmsnorm_residual(x1, x2, weight, eps=eps)[0]


@accepts("threadgroup", "compute_dtype")
def layernorm_residual(
    x: mx.array,
    residual: mx.array,
    gamma: mx.array,
    beta: mx.array | None,
    *,
    eps: float = 1e-5,
) -> tuple[mx.array, mx.array]:
    """(layer_norm(x + residual, gamma, beta), x + residual); beta may be None."""
    weights = (w for w in (gamma, beta) if w is not None)
    return ops.add_layer_norm(x, *like(x, residual, *weights), eps=eps)


@accepts("threadgroup", "compute_dtype")
def fused_add_layernorm(
    x1: mx.array, x2: mx.array, gamma: mx.array, beta: mx.array | None, *, eps: float = 1e-5
) -> mx.array:
    """layer_norm(x1 + x2, gamma, beta)."""
    return layernorm_residual(x1, x2, gamma, beta, eps=eps)[0]


__all__ = [
    "bias_geglu",
    "bias_swiglu",
    "dropout",
    "fused_add_layernorm",
    "fused_add_rmsnorm",
    "geglu",
    "geglu2",
    "layernorm_residual",
    "rms_norm_dropout",
    "rmsnorm_residual",
    "swiglu",
    "swiglu2",
]
