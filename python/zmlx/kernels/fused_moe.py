# zmlx/kernels/fused_moe.py: the gated unit of experts chosen by index.
"""Gate and up projections of chosen experts, with their SwiGLU."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops


def has_gather_qmm_swiglu() -> bool:
    """Whether gather_qmm_swiglu can be called: always."""
    return True


def gather_qmm_swiglu(
    x: mx.array,
    gate_w: mx.array,
    gate_scales: mx.array,
    gate_biases: mx.array,
    up_w: mx.array,
    up_scales: mx.array,
    up_biases: mx.array,
    *,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    transpose: bool = True,
    group_size: int = 64,
    bits: int = 4,
) -> mx.array:
    """silu(x @ gate.T) * (x @ up.T) for x [.., M, K] and the chosen experts of [E, N, K].

    Args:
        gate_w, gate_scales, gate_biases, up_w, up_scales, up_biases: as mx.quantize gives them.
        lhs_indices, rhs_indices: of x's and the weights' matrices, as in mx.gather_qmm.
        transpose, group_size, bits: as in mx.gather_qmm.
    """

    sides = ((gate_w, gate_scales, gate_biases), (up_w, up_scales, up_biases))
    options = {"group_size": group_size, "bits": bits}
    one_row = x.ndim > 2 and x.shape[-3:-1] == (1, 1) and x.dtype == gate_scales.dtype
    if one_row and transpose and lhs_indices is None and _fits(x, rhs_indices):
        each, chosen = x[..., 0, 0, :], rhs_indices.astype(mx.uint32)
        y = ops.gather_qmm_swiglu(each, *sides[0], *sides[1], chosen, **options)
        return y[..., None, :]
    options |= {"lhs_indices": lhs_indices, "rhs_indices": rhs_indices, "transpose": transpose}
    return ops.silu_mul(*(mx.gather_qmm(x, *weight, **options) for weight in sides))


def _fits(x: mx.array, indices: mx.array | None) -> bool:
    """Whether each row of x [.., 1, 1, K] has experts of its own, indices [.., k]."""
    return indices is not None and indices.shape[:-1] == x.shape[:-3]


__all__ = ["gather_qmm_swiglu", "has_gather_qmm_swiglu"]
