# zmlx/autograd.py: kernels with gradients that the user gives.
"""Elementwise kernels whose gradients are expressions, too."""

from __future__ import annotations

import mlx.core as mx

from zmlx.authoring import Kernel, dtype_name, kernel


def unary_from_expr(
    *,
    name: str,
    fwd_expr: str,
    vjp_expr: str,
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    use_output: bool = True,
    header: str = "",
    vjp_prelude: str = "",
) -> Kernel:
    """A kernel of `x` with its gradient in `x`, the cotangent `g` and the result `y`."""
    return kernel(
        name,
        ("x",),
        fwd_expr,
        compute_dtype=dtype_name(compute_dtype),
        gradients=(vjp_expr,),
        prelude=vjp_prelude,
        header=header,
    )


def binary_from_expr(
    *,
    name: str,
    fwd_expr: str,
    vjp_lhs_expr: str,
    vjp_rhs_expr: str,
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    header: str = "",
    vjp_prelude: str = "",
) -> Kernel:
    """A kernel of `a` and `b`, which broadcast, with its gradients in `a`, `b`, `g` and `y`."""
    return kernel(
        name,
        ("a", "b"),
        fwd_expr,
        compute_dtype=dtype_name(compute_dtype),
        gradients=(vjp_lhs_expr, vjp_rhs_expr),
        prelude=vjp_prelude,
        header=header,
    )
