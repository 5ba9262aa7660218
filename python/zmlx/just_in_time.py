# zmlx/just_in_time.py: `jit`, which makes one kernel of a Python function of arrays.
"""`@zmlx.jit`: arithmetic and MLX's elementwise functions, traced once and compiled."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from zmlx.authoring import kernel
from zmlx.tracing import Trace, Value


class Jitted:
    """A function whose calls run as one kernel; see `jit`."""

    def __init__(self, fn: types.FunctionType):
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._signature = inspect.signature(fn)
        self._traces: dict[Any, _Traced] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        inner = next((x for x in (*args, *kwargs.values()) if isinstance(x, Value)), None)
        if inner is not None:  # called by a function that is being traced
            return inner.trace.rebound(self._fn, {})(*args, **kwargs)
        parts, together, inputs = self._prepared(args, kwargs)
        outputs: dict[int, Any] = {}
        for part in parts:
            made = part(inputs)
            outputs.update(zip(part.places, made, strict=True))
        return together([outputs[i] for i in range(len(outputs))])

    def sources(self, *args: Any, language: str = "cpp", **kwargs: Any) -> list[str]:
        """The kernels' texts in "cpp", "cuda" or "metal" for these arguments."""
        parts, _, inputs = self._prepared(args, kwargs)
        return [part.source(inputs, language) for part in parts]

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Prepared:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        inputs: dict[str, Any] = {}
        constants: dict[str, Any] = {}
        for name, x in _leaves(bound):
            if isinstance(x, mx.array) or (isinstance(x, int | float) and not isinstance(x, bool)):
                inputs[name + "_"] = x
            elif x is None or isinstance(x, bool | str | mx.Dtype):
                constants[name] = x
            else:
                raise TypeError(
                    f"[{self.__name__}] {name} must be an array, a number, a bool, a string, a "
                    f"dtype or None but got {type(x).__name__}."
                )
        arrays = frozenset(name for name, x in inputs.items() if isinstance(x, mx.array))
        one_shape = len({inputs[name].shape for name in arrays}) == 1
        short = frozenset(n for n in arrays if inputs[n].ndim == 0 or inputs[n].shape[-1] == 1)
        key = (tuple(inputs), arrays, tuple(constants.items()), one_shape, short)
        if key not in self._traces:
            self._traces[key] = self._trace(bound, arrays if one_shape else frozenset(), inputs)
        return (*self._traces[key], inputs)

    def _trace(
        self, bound: inspect.BoundArguments, alike: frozenset[str], inputs: dict[str, Any]
    ) -> _Traced:
        """`alike`: arrays that have one shape."""
        trace = Trace(self.__name__)
        for name, x in list(bound.arguments.items()):
            kind = bound.signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                bound.arguments[name] = tuple(
                    _value(trace, f"{name}_{i}", item) for i, item in enumerate(x)
                )
            elif kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = {k: _value(trace, k, item) for k, item in x.items()}
            else:
                bound.arguments[name] = _value(trace, name, x)
        result = trace.rebound(self._fn, {})(*bound.args, **bound.kwargs)
        trace.check_rows(inputs)
        several = isinstance(result, tuple | list)
        values = [trace.value(x) for x in (result if several else [result])]
        # What does not depend on all arrays may have another shape, so it is a kernel of its own.
        whole: frozenset[str] = frozenset().union(*(v.needs for v in values))
        groups: dict[frozenset[str], list[int]] = {}
        for place, value in enumerate(values):
            fits = value.needs & alike and not trace.captured
            groups.setdefault(whole if fits else value.needs, []).append(place)
        parts = [_Part(trace, needs, places, values) for needs, places in groups.items()]
        return parts, (type(result) if several else operator.itemgetter(0))


def _leaves(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    for name, x in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{i}", item) for i, item in enumerate(x))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from x.items()
        else:
            yield name, x


def _value(trace: Trace, name: str, x: Any) -> Any:
    known = x is None or isinstance(x, bool | str | mx.Dtype)
    return x if known else trace.input(name + "_")


class _Part:
    """Outputs that one kernel computes."""

    def __init__(self, trace: Trace, needs: frozenset[str], places: list[int], values: list[Value]):
        self.places = places
        self._names = sorted(needs)
        self._captured = trace.captured
        statements = [text for text, of in trace.statements if of <= needs]
        outputs = [f"out{place}" for place in places]
        statements += [
            f"{name} = {values[place].text};" for name, place in zip(outputs, places, strict=True)
        ]
        self._kernel = kernel(trace.name, tuple(self._names), "\n".join(statements), tuple(outputs))

    def _arguments(self, inputs: dict[str, Any]) -> list[Any]:
        return [inputs[name] if name in inputs else self._captured[name] for name in self._names]

    def __call__(self, inputs: dict[str, Any]) -> list[mx.array]:
        made = self._kernel(*self._arguments(inputs))
        return made if isinstance(made, list) else [made]

    def source(self, inputs: dict[str, Any], language: str) -> str:
        arrays = [x if isinstance(x, mx.array) else mx.array(x) for x in self._arguments(inputs)]
        return self._kernel.source(language, [x.dtype for x in arrays])


_Traced = tuple[list[_Part], Callable[[Sequence[mx.array]], Any]]
_Prepared = tuple[list[_Part], Callable[[Sequence[mx.array]], Any], dict[str, Any]]


def jit(fn: Callable[..., Any]) -> Jitted:
    """The function as one kernel: `@zmlx.jit`.

    `fn` is called once for each set of constants with values that write down what is done with
    them. It may use arithmetic, comparisons, MLX's elementwise functions, activations of
    `mlx.nn`, reductions of the last axis (axis=-1, keepdims=True: sum, mean, prod, max, min, var,
    logsumexp; softmax), loops over known ranges, and Python functions that do the same. Arrays and
    numbers are inputs, known at run time; bools, strings, dtypes and None are constants. Arrays
    that it captures are inputs without gradients. Outputs that depend on arrays of other shapes
    than the rest get kernels of their own.

    The result is differentiable, can be used in `mx.vmap` and `mx.compile`, and computes float16
    and bfloat16 in float32.

    Raises:
        TypeError: the function does something else; the message names it.
    """
    if not isinstance(fn, types.FunctionType):
        raise TypeError(f"[jit] expected a Python function but got {type(fn).__name__}.")
    return Jitted(fn)
