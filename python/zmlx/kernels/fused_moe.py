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

    def projected(*weights: mx.array) -> mx.array:
        return mx.gather_qmm(
            x,
            *weights,
            lhs_indices=lhs_indices,
            rhs_indices=rhs_indices,
            transpose=transpose,
            group_size=group_size,
            bits=bits,
        )

    return ops.swiglu(
        projected(gate_w, gate_scales, gate_biases), projected(up_w, up_scales, up_biases)
    )


__all__ = ["gather_qmm_swiglu", "has_gather_qmm_swiglu"]
