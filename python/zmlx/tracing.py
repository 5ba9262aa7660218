# zmlx/tracing.py: values that write down what is done with them, and functions called on them.
"""What `zmlx.jit` traces a function with."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any, NoReturn

import mlx.core as mx
import mlx.nn as nn

from zmlx.authoring import dtype_name

# Functions of mlx.core that are elementwise, and what the kernel language calls them.
_UNARY = (
    "abs negative sign floor ceil round exp expm1 log log1p log2 log10 sqrt rsqrt square "
    "reciprocal sin cos tan sinh cosh tanh arcsin arccos arctan erf sigmoid isnan isinf isfinite "
    "logical_not"
)
_BINARY = (
    "add subtract multiply divide floor_divide remainder power maximum minimum logaddexp less "
    "less_equal greater greater_equal equal not_equal logical_and logical_or"
)
UNARY = {**{name: name for name in _UNARY.split()}, "bitwise_invert": "bit_not"}
BINARY = {
    **{name: name for name in _BINARY.split()},
    "bitwise_and": "bit_and",
    "bitwise_or": "bit_or",
    "bitwise_xor": "bit_xor",
    "left_shift": "shift_left",
    "right_shift": "shift_right",
}
# Functions of mlx.nn, with their parameters behind x.
LAYERS: dict[str, tuple[str, dict[str, float]]] = {
    "silu": ("silu", {}),
    "sigmoid": ("sigmoid", {}),
    "relu": ("relu", {}),
    "relu2": ("relu2", {}),
    "gelu": ("gelu", {}),
    "gelu_approx": ("gelu_tanh", {}),
    "softplus": ("softplus", {}),
    "mish": ("mish", {}),
    "log_sigmoid": ("log_sigmoid", {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.01}),
    "elu": ("elu", {"alpha": 1.0}),
}


# Reductions of rows, and what the kernel language calls them; the last axis stays, of extent 1, but
# for softmax.
REDUCTIONS = {
    "sum": "row_sum",
    "mean": "row_mean",
    "prod": "row_prod",
    "max": "row_max",
    "min": "row_min",
    "var": "row_var",
    "logsumexp": "row_logsumexp",
    "softmax": "row_softmax",
}


class Trace:
    """The statements of one function, in the kernel language."""

    def __init__(self, name: str):
        self.name = name
        self.reductions: list[tuple[str, frozenset[str]]] = []  # what is reduced
        self.statements: list[tuple[str, frozenset[str]]] = []
        self.captured: dict[str, mx.array] = {}
        self._count = 0

    def error(self, what: str) -> NoReturn:
        raise TypeError(f"[{self.name}] {what}.")

    def input(self, name: str) -> Value:
        return Value(self, name, frozenset([name]))

    def value(self, x: Any) -> Value:
        """A number's or an array's; a value stays."""
        if isinstance(x, Value):
            return x
        if isinstance(x, bool):
            return Value(self, "true" if x else "false", frozenset())
        if isinstance(x, int | float):
            text = (
                repr(x) if math.isfinite(x) else {math.inf: "inf", -math.inf: "-inf"}.get(x, "nan")
            )
            return Value(self, f"({text})" if text[0] == "-" else text, frozenset())
        if isinstance(x, mx.array):
            for name, known in self.captured.items():
                if known is x:
                    return self.input(name)
            name = f"captured{len(self.captured)}"
            self.captured[name] = x
            return self.input(name)
        self.error(f"expected an array or a number but got {type(x).__name__}")

    def call(self, function: str, *args: Any) -> Value:
        values = [self.value(x) for x in args]
        name = f"v{self._count}"
        self._count += 1
        needs = frozenset().union(*(v.needs for v in values))
        self.statements.append(
            (f"{name} = {function}({', '.join(v.text for v in values)});", needs)
        )
        return Value(self, name, needs)

    def function(self, of: Callable[..., Any], title: str) -> Callable[..., Any]:
        """What stands for one of MLX's functions while tracing."""
        for table in (UNARY, BINARY):
            for name, spelled in table.items():
                if getattr(mx, name, None) is of:
                    arity = 1 if table is UNARY else 2
                    return self._fixed(title, spelled, arity)
        if of is mx.where:
            return self._fixed(title, "select", 3)
        if of is mx.clip:
            return self._clip
        for name, spelled in REDUCTIONS.items():
            if getattr(mx, name, None) is of:
                return lambda *args, **kwargs: self.reduce(title, spelled, *args, **kwargs)
        for name, (spelled, rest) in LAYERS.items():
            if getattr(nn, name, None) is of:
                return self._layer(title, spelled, rest)

        def refuse(*_: Any, **__: Any) -> NoReturn:
            self.error(
                f"{title} is neither elementwise nor a reduction of rows, so it cannot be part of "
                "the kernel; call it outside"
            )

        return refuse

    def reduce(
        self,
        title: str,
        spelled: str,
        x: Any,
        /,
        axis: Any = None,
        keepdims: bool = False,
        *,
        precise: bool = True,
        ddof: int = 0,
        stream: Any = None,
    ) -> Value:
        """A reduction of the last axis."""
        if axis not in (-1, (-1,), [-1]):
            self.error(
                f"{title} over axis {axis} cannot be part of the kernel: only over the last, "
                "axis=-1"
            )
        if not keepdims and spelled != "row_softmax":
            self.error(f"{title} must keep the axis that it reduces: keepdims=True")
        value = self.value(x)
        self.reductions.append((title, value.needs))
        made = self.call(spelled, value)
        if ddof and spelled == "row_var":
            count = Value(self, "row_size", frozenset())
            made = self.call("mul", made, self.call("div", count, self.call("sub", count, ddof)))
        return made

    def check_rows(self, inputs: dict[str, Any]) -> None:
        """A kernel has rows of one length, which are those of what it reduces."""
        lengths = {
            name: x.shape[-1] if isinstance(x, mx.array) and x.ndim else 1
            for name, x in {**inputs, **self.captured}.items()
        }
        longest = max(lengths.values(), default=1)
        for title, needs in self.reductions:
            if longest > 1 and all(lengths[name] == 1 for name in needs):
                self.error(f"{title} takes rows of one element but other arrays have longer rows")

    def _fixed(self, title: str, spelled: str, arity: int) -> Callable[..., Value]:
        def function(*args: Any, stream: Any = None) -> Value:
            if len(args) != arity:
                self.error(f"{title} takes {arity} argument{'s' * (arity > 1)} but got {len(args)}")
            return self.call(spelled, *args)

        return function

    def _layer(self, title: str, spelled: str, rest: dict[str, float]) -> Callable[..., Value]:
        def function(x: Any, *args: Any, **kwargs: Any) -> Value:
            if len(args) > len(rest) or not kwargs.keys() <= rest.keys():
                self.error(f"{title} takes x and {list(rest)} but got others")
            given = {**rest, **dict(zip(rest, args, strict=False)), **kwargs}
            return self.call(spelled, x, *given.values())

        return function

    def _clip(self, a: Any, a_min: Any = None, a_max: Any = None, *, stream: Any = None) -> Value:
        low = a if a_min is None else self.call("max", a, a_min)
        return self.value(low) if a_max is None else self.call("min", low, a_max)

    def translated(self, x: Any, title: str, seen: dict[int, Any]) -> Any:
        """What a name of the function means while tracing."""
        if isinstance(x, mx.array):
            return self.value(x)
        if isinstance(x, types.ModuleType) and x.__name__ in ("mlx", "mlx.core", "mlx.nn"):
            return Module(self, x, title)
        if is_mlx_function(x):
            return self.function(x, title)
        if isinstance(x, types.FunctionType):
            return self.rebound(x, seen)
        return x

    def rebound(self, fn: types.FunctionType, seen: dict[int, Any]) -> Callable[..., Any]:
        """The function with MLX's functions replaced by those of this trace."""
        if id(fn) in seen:
            return seen[id(fn)]
        scope = dict(fn.__globals__)
        cells = tuple(types.CellType() for _ in fn.__closure__ or ())
        new = types.FunctionType(fn.__code__, scope, fn.__name__, fn.__defaults__, cells)
        new.__kwdefaults__ = fn.__kwdefaults__
        seen[id(fn)] = new
        for name in names_in(fn.__code__) & scope.keys():
            scope[name] = self.translated(scope[name], name, seen)
        for name, old, cell in zip(
            fn.__code__.co_freevars, fn.__closure__ or (), cells, strict=True
        ):
            cell.cell_contents = self.translated(old.cell_contents, name, seen)
        return new


def names_in(code: types.CodeType) -> set[str]:
    """Global names of a function and of those inside it."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return names


def is_mlx_function(x: Any) -> bool:
    module = getattr(x, "__module__", None) or ""
    return callable(x) and not isinstance(x, type) and module.startswith("mlx.")


class Module:
    """Stands for mlx, mlx.core or mlx.nn."""

    def __init__(self, trace: Trace, module: types.ModuleType, title: str):
        self._trace = trace
        self._module = module
        self._title = title

    def __getattr__(self, name: str) -> Any:
        title = f"{self._title}.{name}"
        return self._trace.translated(getattr(self._module, name), title, {})


class Value:
    """An array or number that is not known yet."""

    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None

    def __init__(self, trace: Trace, text: str, needs: frozenset[str]):
        self.trace = trace
        self.text = text
        self.needs = needs

    def astype(self, dtype: mx.Dtype, stream: Any = None) -> Value:
        return self.trace.call(dtype_name(dtype), self)

    def __bool__(self) -> bool:
        self.trace.error(
            "the truth of an array is not known while tracing: use mx.where, mx.maximum or "
            "mx.logical_and instead of if, while, and, or, not, max"
        )

    def __float__(self) -> float:
        self.trace.error(
            "a number is not known while tracing: use MLX's functions instead of math's"
        )

    __int__ = __index__ = __float__  # type: ignore[assignment]

    def __getitem__(self, at: Any) -> NoReturn:
        self.trace.error("indexing is not elementwise, so it cannot be part of the kernel")

    def __setitem__(self, at: Any, value: Any) -> NoReturn:
        self.trace.error("assigning to elements is not elementwise: use mx.where")

    def __iter__(self) -> NoReturn:
        self.trace.error("the elements of an array are not known while tracing")

    def __matmul__(self, other: Any) -> NoReturn:
        self.trace.error("@ is not elementwise, so it cannot be part of the kernel")

    def __getattr__(self, name: str) -> Any:
        if name in UNARY:
            return lambda stream=None: self.trace.call(UNARY[name], self)
        if name in REDUCTIONS and name != "softmax":
            title = f"{name} of an array"
            return lambda *args, **kwargs: self.trace.reduce(
                title, REDUCTIONS[name], self, *args, **kwargs
            )
        raise AttributeError(
            f"[{self.trace.name}] .{name} of an array is not known while tracing or not "
            "elementwise."
        )


def _operators() -> None:
    both = {
        "add": "add",
        "sub": "sub",
        "mul": "mul",
        "truediv": "div",
        "floordiv": "floor_div",
        "mod": "remainder",
        "pow": "pow",
        "and": "bit_and",
        "or": "bit_or",
        "xor": "bit_xor",
        "lshift": "shift_left",
        "rshift": "shift_right",
    }
    for name, spelled in both.items():
        setattr(Value, f"__{name}__", lambda a, b, f=spelled: a.trace.call(f, a, b))
        setattr(Value, f"__r{name}__", lambda a, b, f=spelled: a.trace.call(f, b, a))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(Value, f"__{name}__", lambda a, b, f=name: a.trace.call(f, a, b))
    for name, spelled in {"neg": "neg", "abs": "abs", "invert": "bit_not"}.items():
        setattr(Value, f"__{name}__", lambda a, f=spelled: a.trace.call(f, a))
    Value.__pos__ = lambda a: a  # type: ignore[attr-defined]


_operators()
