# zmlx/reductions.py: expressions reduced over axes, in one pass over memory.
"""`zmlx.map_reduce("x * x", "sum", axis=-1)` and `zmlx.reduce("max")`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import mlx.core as mx

from zmlx import _ext
from zmlx.authoring import Function, Number


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


def map_reduce(
    expr: str,
    op: str = "sum",
    axis: int | Sequence[int] | None = None,
    *,
    inputs: Sequence[str] = ("x",),
    keepdims: bool = False,
    name: str | None = None,
    header: str = "",
) -> Reduction:
    """A kernel that computes `expr` and reduces it over `axis` at once: no array between.

    Args:
        expr: as in `zmlx.elementwise`, of inputs that broadcast.
        op: "sum", "mean", "prod", "max" or "min".
        axis: axes of the inputs' common shape; None for all.
        inputs: the names that `expr` may use.
        keepdims: whether reduced axes stay, of extent 1.

    The gradients of sums and means take one pass, too; those of max, min and prod are MLX's.

    Raises:
        ValueError: another op, or text that is no expression.
    """
    axes = None if axis is None else [axis] if isinstance(axis, int) else list(axis)
    title = name or "map_reduce"
    kernel = _kernel(title, tuple(inputs), expr, op, header)
    return Reduction(kernel, title, tuple(inputs), axes, keepdims)


def reduce(
    op: str = "sum", axis: int | Sequence[int] | None = None, *, keepdims: bool = False
) -> Reduction:
    """`map_reduce` of the input itself."""
    return map_reduce("x", op, axis, keepdims=keepdims, name="reduce")
