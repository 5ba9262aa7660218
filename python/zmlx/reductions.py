# zmlx/reductions.py: expressions reduced over axes, in one pass over memory.
"""`zmlx.map_reduce("x * x", "sum", axis=-1)` and `zmlx.reduce("max")`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import overload

import mlx.core as mx

from zmlx import _ext
from zmlx.authoring import Function, Kernel, Number, dtype_name
from zmlx.rowwise import folded


class Reduction(Function):
    """A function of arrays, compiled once for each set of dtypes.

    As a `Kernel`, with the axes given when it is made. Floating values are added up in double
    precision; the result has the dtype that MLX's own reduction of the expression has.
    """

    def __init__(
        self,
        kernel: _ext.MapReduce,
        name: str,
        inputs: Sequence[str],
        axes: list[int] | None,
        keepdims: bool,
    ):
        super().__init__(name, inputs)
        self._kernel = kernel
        self._axes = axes
        self._keepdims = keepdims

    def __call__(self, *inputs: mx.array | Number) -> mx.array:
        arrays, weak = self._arguments(inputs)
        return self._kernel(arrays, self._axes, self._keepdims, weak)

    def source(self, dtypes: Sequence[mx.Dtype] | None = None) -> str:
        """The C++ text that is compiled for inputs of these dtypes, by default float32."""
        return self._kernel.source(self._dtype_names(dtypes))


@functools.cache
def _kernel(name: str, inputs: tuple[str, ...], expr: str, op: str, header: str) -> _ext.MapReduce:
    return _ext.MapReduce(name, list(inputs), expr, op, header)


@overload
def map_reduce(
    expr: str,
    op: str = "sum",
    axis: int | Sequence[int] | None = None,
    *,
    inputs: Sequence[str] = ("x",),
    keepdims: bool = False,
    name: str | None = None,
    header: str | None = None,
) -> Reduction: ...


@overload
def map_reduce(
    *,
    pass1: dict[str, str],
    pass2: dict[str, str],
    write: str,
    name: str | None = None,
    threadgroup: int | str = 256,
    compute_dtype: mx.Dtype | None = None,
    header: str | None = None,
) -> Kernel: ...


def map_reduce(
    expr: str | None = None,
    op: str = "sum",
    axis: int | Sequence[int] | None = None,
    *,
    inputs: Sequence[str] = ("x",),
    keepdims: bool = False,
    name: str | None = None,
    header: str | None = None,
    pass1: dict[str, str] | None = None,
    pass2: dict[str, str] | None = None,
    write: str | None = None,
    threadgroup: int | str = 256,
    compute_dtype: mx.Dtype | None = None,
) -> Reduction | Kernel:
    """A kernel that computes `expr` and reduces it over `axis` at once: no array between.

    Args:
        expr: as in `zmlx.elementwise`, of inputs that broadcast.
        op: "sum", "mean", "prod", "max" or "min".
        axis: axes of the inputs' common shape; None for all.
        inputs: the names that `expr` may use.
        keepdims: whether reduced axes stay, of extent 1.

    The gradients of sums and means take one pass, too; those of max, min and prod are MLX's.

    With `pass1`, `pass2` and `write` it is a kernel of one input `x` that goes twice over each row
    (the last axis) and then writes its elements. A pass is a dict of `init`, `update` (the new
    value of `acc1` or `acc2`, from `x` and, in the second pass, the first's result `s1`) and, if
    given, `reduce` (how two values `a` and `b` are combined); `write` is an expression in `x`,
    `s1`, `s2` and the row's length `D`. It is computed in `compute_dtype`, by default float32, and
    the result has x's dtype. `threadgroup` changes nothing.

    Raises:
        ValueError: another op, text that is no expression, or passes that do not fit together.
    """
    if pass1 is not None or pass2 is not None or write is not None:
        if expr is not None or pass1 is None or pass2 is None or write is None:
            raise ValueError("[map_reduce] takes expr, or pass1, pass2 and write.")
        folds = tuple(
            (f"s{i}", f"acc{i}", of["init"], of["update"], of.get("reduce", ""))
            for i, of in enumerate((pass1, pass2), 1)
        )
        dtype = dtype_name(compute_dtype or mx.float32)
        return folded(name or "map_reduce", ("x",), folds, write, dtype, header or "", True)
    if expr is None:
        raise ValueError("[map_reduce] takes expr, or pass1, pass2 and write.")
    axes = None if axis is None else [axis] if isinstance(axis, int) else list(axis)
    title = name or "map_reduce"
    kernel = _kernel(title, tuple(inputs), expr, op, header or "")
    return Reduction(kernel, title, tuple(inputs), axes, keepdims)


@overload
def reduce(
    op: str = "sum", axis: int | Sequence[int] | None = None, *, keepdims: bool = False
) -> Reduction: ...


@overload
def reduce(
    *,
    init: str,
    update: str,
    finalize: str = "acc",
    name: str | None = None,
    compute_dtype: mx.Dtype | None = None,
    header: str | None = None,
) -> Kernel: ...


def reduce(
    op: str = "sum",
    axis: int | Sequence[int] | None = None,
    *,
    keepdims: bool = False,
    init: str | None = None,
    update: str | None = None,
    finalize: str = "acc",
    name: str | None = None,
    compute_dtype: mx.Dtype | None = None,
    header: str | None = None,
) -> Reduction | Kernel:
    """`map_reduce` of the input itself.

    With `init` and `update` it is a kernel that folds each row (the last axis) of one input, of any
    values `v`, into `acc = update`, from `init` on, and gives `finalize`, an expression in `acc`,
    without that axis. It is computed in `compute_dtype`, by default float32, and the result has the
    input's dtype.

    Raises:
        ValueError: another op, or text that is no expression.
    """
    if init is None and update is None:
        return map_reduce("x", op, axis, keepdims=keepdims, name="reduce")
    if init is None or update is None:
        raise ValueError("[reduce] takes init and update together.")
    folds = (("acc", "acc", init, update, ""),)
    dtype = dtype_name(compute_dtype or mx.float32)
    return folded(name or "reduce", ("v",), folds, finalize, dtype, header or "", keepdims)
