# zmlx/elementwise.py: kernels from expressions; the module itself is callable.
"""`zmlx.elementwise("x * sigmoid(x)")` makes a kernel; `unary`, `binary` and `map` name inputs."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from zmlx.authoring import Kernel, dtype_name, kernel


def unary(
    *,
    name: str,
    expr: str,
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    header: str = "",
    cache: bool = True,
) -> Kernel:
    """A kernel of one input, `x`. Any strides are read in place, so `ensure_row_contiguous` and
    `cache` change nothing."""
    return kernel(name, ("x",), expr, compute_dtype=dtype_name(compute_dtype), header=header)


def binary(
    *,
    name: str,
    expr: str,
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    header: str = "",
) -> Kernel:
    """A kernel of two inputs, `a` and `b`, which broadcast."""
    return map(
        name=name, expr=expr, input_names=("a", "b"), compute_dtype=compute_dtype, header=header
    )


def map(
    *,
    name: str,
    expr: str,
    input_names: Sequence[str],
    compute_dtype: mx.Dtype | None = None,
    ensure_row_contiguous: bool = True,
    header: str = "",
) -> Kernel:
    """A kernel of the named inputs, which broadcast."""
    return kernel(
        name, tuple(input_names), expr, compute_dtype=dtype_name(compute_dtype), header=header
    )


class _Callable(types.ModuleType):
    """The module, which makes a kernel when it is called."""

    def __call__(
        self,
        expr: str,
        *,
        inputs: Sequence[str] = ("x",),
        name: str | None = None,
        grad_expr: str | None = None,
        compute_dtype: mx.Dtype | None = None,
        header: str | None = None,
        use_output: bool = True,
        grad_prelude: str = "",
    ) -> Kernel:
        """A kernel of `expr`, by default of one input `x`.

        Args:
            expr: a C-like expression such as `x > 0 ? x : alpha * expm1(x)`.
            inputs: the names that it may use.
            grad_expr: for one input, its gradient in `x`, the cotangent `g` and the result `y`;
                by default it is derived from `expr`.
            compute_dtype: what inputs are converted to; floating results keep the inputs' dtype.
            header: functions `float f(float a) { return ...; }` for `expr` to use.
            grad_prelude: statements before `grad_expr`.

        Raises:
            ValueError: text that is no expression, with a caret at the place.
        """
        gradients: tuple[Any, ...] = () if grad_expr is None else (grad_expr,)
        if gradients and len(inputs) != 1:
            raise ValueError(
                f"[elementwise] grad_expr takes one input but got {len(inputs)}; "
                "see zmlx.autograd.binary_from_expr."
            )
        return kernel(
            name or "elementwise",
            tuple(inputs),
            expr,
            compute_dtype=dtype_name(compute_dtype),
            gradients=gradients,
            prelude=grad_prelude,
            header=header or "",
        )


sys.modules[__name__].__class__ = _Callable
