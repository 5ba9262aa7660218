# zmlx/autograd.py: kernels with gradients that the user gives.
"""Elementwise kernels whose gradients are expressions, too."""

from __future__ import annotations

from collections.abc import Sequence

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


def nary_from_expr(
    *,
    name: str,
    fwd_expr: str,
    vjp_exprs: Sequence[str],
    input_names: Sequence[str],
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    header: str = "",
    vjp_prelude: str = "",
) -> Kernel:
    """A kernel of the named inputs, which broadcast.

    Args:
        vjp_exprs: one for each input: its gradient in the inputs, the cotangent `g` and the
            result `y`. No input may be named so.
        vjp_prelude: statements before each of them.

    Raises:
        ValueError: another number of gradients, an input named `g` or `y`, or text that is no
            expression.
    """
    if len(vjp_exprs) != len(input_names):
        raise ValueError(
            f"[{name}] vjp_exprs must have one gradient for each of {len(input_names)} inputs "
            f"but got {len(vjp_exprs)}."
        )
    for taken in ("g", "y"):
        if taken in input_names:
            raise ValueError(f"[{name}] '{taken}' has a meaning in gradients: rename the input.")
    return kernel(
        name,
        tuple(input_names),
        fwd_expr,
        compute_dtype=dtype_name(compute_dtype),
        gradients=tuple(vjp_exprs),
        prelude=vjp_prelude,
        header=header,
    )
