# zmlx/authoring.py: calling the extension's kernels with arrays and numbers.
"""Kernels written as expressions: what `zmlx.elementwise`, `zmlx.rowwise` and `zmlx.autograd` are
made of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence

import mlx.core as mx

from zmlx import _ext

Number = bool | int | float


def dtype_name(dtype: mx.Dtype | str | None) -> str:
    """ "float32" for mx.float32, "" for None."""
    return "" if dtype is None else str(dtype).rsplit(".", 1)[-1]


class Function:
    """What is called with arrays and numbers."""

    def __init__(self, name: str, inputs: Sequence[str]):
        self.name = name
        self.__name__ = name
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in inputs]
        )

    def _arguments(self, inputs: Sequence[mx.array | Number]) -> tuple[list[mx.array], list[bool]]:
        """Arrays, and which of them were numbers."""
        arrays = [x if isinstance(x, mx.array) else _number(self.name, x) for x in inputs]
        return arrays, [not isinstance(x, mx.array) for x in inputs]

    def _dtype_names(self, dtypes: Sequence[mx.Dtype] | None) -> list[str]:
        count = len(self.__signature__.parameters)
        return [dtype_name(d) for d in dtypes or [mx.float32] * count]


class Kernel(Function):
    """A function of arrays, compiled once for each set of dtypes.

    Inputs broadcast and may have any strides. Numbers among them are passed at run time and do
    not widen the result. float16 and bfloat16 are computed in float32. Differentiable to any
    order by `mx.grad`, `mx.vjp` and `mx.jvp`, and mapped by `mx.vmap`.
    """

    def __init__(self, kernel: _ext.Elementwise, name: str, inputs: Sequence[str], outputs: int):
        super().__init__(name, inputs)
        self._kernel = kernel
        self._outputs = outputs

    def __call__(self, *inputs: mx.array | Number) -> mx.array | list[mx.array]:
        outputs = self._kernel(*self._arguments(inputs))
        return outputs[0] if self._outputs == 1 else outputs

    def source(self, language: str = "cpp", dtypes: Sequence[mx.Dtype] | None = None) -> str:
        """The text in "cpp", "cuda" or "metal" for inputs of these dtypes, by default float32."""
        return self._kernel.source(language, self._dtype_names(dtypes))


def _number(name: str, value: Number) -> mx.array:
    if not isinstance(value, bool | int | float):
        raise TypeError(
            f"[{name}] inputs must be arrays or numbers but got {type(value).__name__}."
        )
    return mx.array(value)


@functools.cache
def kernel(
    name: str,
    inputs: tuple[str, ...],
    text: str,
    outputs: tuple[str, ...] = (),
    compute_dtype: str = "",
    gradients: tuple[str, ...] = (),
    prelude: str = "",
    header: str = "",
    keepdims: bool = True,
) -> Kernel:
    """The kernel of an expression or, with `outputs`, of statements that assign to them."""
    made = _ext.Elementwise(
        name,
        list(inputs),
        text,
        list(outputs),
        compute_dtype,
        list(gradients),
        prelude,
        header,
        keepdims,
    )
    return Kernel(made, name, inputs, max(1, len(outputs)))
