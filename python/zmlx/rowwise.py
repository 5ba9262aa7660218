# zmlx/rowwise.py: kernels that reduce rows and use the results; the module itself is callable.
"""`zmlx.rowwise("exp(x - row_max(x)) / row_sum(exp(x - row_max(x)))")` makes a kernel."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Sequence

import mlx.core as mx

from zmlx import _ext
from zmlx.authoring import Kernel, dtype_name, kernel

Fold = tuple[str, str, str, str, str]


@functools.cache
def folded(
    name: str,
    inputs: tuple[str, ...],
    folds: tuple[Fold, ...],
    text: str,
    compute_dtype: str,
    header: str,
    keepdims: bool,
) -> Kernel:
    """The kernel of loops over a row, then `text`.

    A loop is its result's name, its accumulator's, init, update and combine. The result has
    the first input's dtype.
    """
    made = _ext.Elementwise.folds(
        name, list(inputs), list(folds), text, compute_dtype, header, keepdims
    )
    return Kernel(made, name, inputs, 1)


def map_reduce(
    *,
    name: str,
    d: int | None = None,
    pass1_init: str,
    pass1_update: str,
    pass1_reduce_op: str,
    pass2_init: str,
    pass2_update: str,
    pass2_reduce_op: str,
    write_expr: str,
    input_names: Sequence[str] = ("inp",),
    output_names: Sequence[str] = ("out",),
    threadgroup: int = 256,
    compute_dtype: mx.Dtype | None = None,
    header: str = "",
) -> _Listed:
    """Two passes over each row of one array, as `zmlx.map_reduce(pass1=..., pass2=..., write=...)`,
    in a list of one. Rows may have any length, so `d` and `threadgroup` change nothing."""
    if len(input_names) != 1 or len(output_names) != 1:
        raise ValueError(
            f"[{name}] takes one input and one output but got {len(input_names)} and "
            f"{len(output_names)}."
        )
    folds = (
        ("s1", "acc1", pass1_init, pass1_update, pass1_reduce_op),
        ("s2", "acc2", pass2_init, pass2_update, pass2_reduce_op),
    )
    return _Listed(
        folded(
            name, ("x",), folds, write_expr, dtype_name(compute_dtype or mx.float32), header, True
        )
    )


class _Listed:
    """A kernel whose result comes in a list."""

    def __init__(self, made: Kernel):
        self._kernel = made
        self.source = made.source

    def __call__(self, x: mx.array) -> list[mx.array]:
        result = self._kernel(x)
        return [result] if isinstance(result, mx.array) else result


class _Callable(types.ModuleType):
    """The module, which makes a kernel when it is called."""

    def __call__(
        self,
        expr: str,
        *,
        inputs: Sequence[str] = ("x",),
        outputs: Sequence[str] = (),
        keepdims: bool = True,
        name: str | None = None,
        compute_dtype: mx.Dtype | None = None,
        header: str | None = None,
    ) -> Kernel:
        """A kernel of `expr`, which may reduce rows: the elements along the last axis.

        Args:
            expr: as in `zmlx.elementwise`, with `row_sum`, `row_mean`, `row_prod`, `row_max`,
                `row_min`, `row_var`, `row_softmax` and `row_logsumexp` of expressions, and the
                row's length `row_size`. With `outputs`, statements that assign to them.
            inputs: the names that it may use. Where an input's last axis has one element, it is one
                value for the row.
            keepdims: whether results with one value for a row keep the last axis, of extent 1.
            compute_dtype: what inputs are converted to; floating results keep the inputs' dtype.
            header: functions `float f(float a) { return ...; }` for `expr` to use.

        Raises:
            ValueError: text that is no expression, with a caret at the place.
        """
        return kernel(
            name or "rowwise",
            tuple(inputs),
            expr,
            tuple(outputs),
            compute_dtype=dtype_name(compute_dtype),
            header=header or "",
            keepdims=keepdims,
        )


sys.modules[__name__].__class__ = _Callable
