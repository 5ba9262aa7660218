# zmlx/kernels/options.py: `threadgroup` and `compute_dtype`, which calls of the catalogue may give.
"""What the catalogue's functions do with `threadgroup` and `compute_dtype`.

`threadgroup`: a power of two up to 1024. It is checked and changes nothing: kernels choose how they
are launched.

`compute_dtype`: float32, float16, bfloat16 or None. Everything is computed in float32. Functions
whose results are float32 whatever their inputs are (top-k values, routing weights, dequantised
weights) return this dtype instead; elsewhere it changes nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
Function = Callable[..., Any]


def check_threadgroup(name: str, value: Any) -> None:
    """Raises ValueError where `value` is not a power of two from 1 to 1024."""
    if value is None or (type(value) is int and 0 < value <= 1024 and value & (value - 1) == 0):
        return
    raise ValueError(
        f"[{name}] threadgroup must be a power of two from 1 to 1024 but got {value!r}."
    )


def check_dtype(name: str, value: Any, argument: str = "compute_dtype") -> None:
    """Raises ValueError where `value` is neither None nor a floating dtype of ours."""
    if value is not None and value not in DTYPES.values():
        raise ValueError(
            f"[{name}] {argument} must be float32, float16, bfloat16 or None but got {value}."
        )


def check_key(name: str, key: Any) -> None:
    """Raises ValueError where `key` is not the name of a floating dtype of ours."""
    if key not in DTYPES:
        raise ValueError(
            f"[{name}] compute_dtype_key must be float32, float16 or bfloat16 but got {key!r}."
        )


_CHECKS: dict[str, tuple[Any, Callable[[str, Any], None]]] = {
    "threadgroup": (256, check_threadgroup),
    "compute_dtype": (None, check_dtype),
}


def accepts(*options: str) -> Callable[[Function], Function]:
    """Adds keyword arguments to a function, which are checked and not passed on."""

    def decorate(function: Function) -> Function:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for option in options:
                if option in kwargs:
                    _CHECKS[option][1](name, kwargs.pop(option))
            return function(*args, **kwargs)

        _sign(call, function, options)
        return call

    return decorate


def returns(dtype: mx.Dtype) -> Callable[[Function], Function]:
    """Makes floating results of a function `dtype`, or what its `compute_dtype` then says."""

    def decorate(function: Function) -> Function:
        name = function.__name__

        @functools.wraps(function)
        def call(*args: Any, compute_dtype: Any = None, **kwargs: Any) -> Any:
            check_dtype(name, compute_dtype)
            wanted = compute_dtype or dtype
            result = function(*args, **kwargs)
            if isinstance(result, tuple):
                return tuple(_cast(array, wanted) for array in result)
            return _cast(result, wanted)

        _sign(call, function, ("compute_dtype",))
        return call

    return decorate


def like(x: mx.array, *others: mx.array) -> list[mx.array]:
    """The arrays in x's dtype."""
    return [other.astype(x.dtype) for other in others]


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Floating arrays in that dtype; indices without gradients, so that they can be used in one."""
    floating = mx.issubdtype(array.dtype, mx.floating)
    return array.astype(dtype) if floating else mx.stop_gradient(array)


def _sign(call: Function, function: Function, options: tuple[str, ...]) -> None:
    signature = inspect.signature(function)
    added = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=_CHECKS[option][0])
        for option in options
    ]
    parameters = [*signature.parameters.values(), *added]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
