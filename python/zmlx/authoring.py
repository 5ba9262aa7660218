# zmlx/authoring.py: calling the extension's kernels with arrays and numbers.
"""Kernels written as expressions: what `zmlx.elementwise` and `zmlx.autograd` are made of."""

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


class Kernel:
    """A function of arrays, compiled once for each set of dtypes.

    Inputs broadcast and may have any strides. Numbers among them are passed at run time and do
    not widen the result. float16 and bfloat16 are computed in float32. Differentiable to any
    order by `mx.grad`, `mx.vjp` and `mx.jvp`, and mapped by `mx.vmap`.
    """

    def __init__(self, kernel: _ext.Elementwise, name: str, inputs: Sequence[str], outputs: int):
        self._kernel = kernel
        self._outputs = outputs
        self.name = name
        self.__name__ = name
        self.__signature__ = inspect.Signature(
            [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in inputs]
        )

    def __call__(self, *inputs: mx.array | Number) -> mx.array | list[mx.array]:
        arrays = [x if isinstance(x, mx.array) else _number(self.name, x) for x in inputs]
        weak = [not isinstance(x, mx.array) for x in inputs]
        outputs = self._kernel(arrays, weak)
        return outputs[0] if self._outputs == 1 else outputs

    def source(self, language: str = "cpp", dtypes: Sequence[mx.Dtype] | None = None) -> str:
        """The text that is compiled for inputs of these dtypes, by default float32."""
        count = len(self.__signature__.parameters)
        return self._kernel.source(
            language, [dtype_name(d) for d in dtypes or [mx.float32] * count]
        )


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
    )
    return Kernel(made, name, inputs, max(1, len(outputs)))
