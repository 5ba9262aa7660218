# zmlx/ops.py: the fused operations as functions of arrays, made from what the library says of each.
"""Fused operations on MLX arrays, with gradients.

Every function computes in float32, keeps its input's dtype (float32, float16 or bfloat16), works
along the last axis where it works on rows, and can be used inside `mx.grad`, `mx.vmap` and
`mx.compile`. Where there is no kernel for a device, it runs as plain MLX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from zmlx import _ext
from zmlx.layer_ops import (
    adamw_step,
    conv1d_silu,
    depthwise_conv,
    dequantise,
    gated_delta_update,
    pack_bits,
    paged_attention,
    resize_bilinear,
    unpack_bits,
)
from zmlx.rope_ops import (
    apply_rope,
    apply_rope_qk,
    rope,
    rope_cache_update,
    rope_qk,
    rope_tables,
)


def _parameter(name: str, otherwise: Any, given: bool) -> inspect.Parameter:
    default = otherwise if given else inspect.Parameter.empty
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)


def _function(name: str) -> Callable[..., Any]:
    """The op's function: arrays by position or name, attributes by name."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = []
    for arg in _ext.op_args(name):
        if arg.startswith("*"):
            rest = arg[1:].replace(" ", "_")
            parameters.append(inspect.Parameter(rest, inspect.Parameter.VAR_POSITIONAL))
        else:
            parameters.append(inspect.Parameter(arg, positional))
    attributes = _ext.op_parameters(name)
    parameters += [_parameter(key, otherwise, given) for key, _, given, otherwise in attributes]
    signature = inspect.Signature(parameters)
    defaults = {key: otherwise for key, _, given, otherwise in attributes if given}
    required = {key for key, _, given, _ in attributes if not given}
    known = required | defaults.keys()
    args_taken = _ext.op_args(name)
    arrays_taken = -1 if any(arg.startswith("*") for arg in args_taken) else len(args_taken)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arrays and attributes of a call in any form; errors give the signature."""
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"[{name}] {error}; the signature is {name}{signature}.") from None
        arrays: list[Any] = []
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                arrays += bound.arguments.get(parameter.name, ())
            elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                arrays.append(bound.arguments[parameter.name])
        return arrays, {key: bound.arguments[key] for key in known & bound.arguments.keys()}

    def function(*args: Any, **kwargs: Any) -> Any:
        if len(args) == arrays_taken and required <= kwargs.keys() <= known:
            arrays: Any = list(args)  # the usual call, without the cost of binding
        else:
            arrays, kwargs = bind(args, kwargs)
        attrs = {**defaults, **kwargs}
        for key, otherwise in defaults.items():
            if type(otherwise) is float:
                attrs[key] = float(attrs[key])
        for array in arrays:
            if not isinstance(array, mx.array):
                kind = type(array).__name__
                raise TypeError(f"[{name}] expected mx.array inputs but got {kind}.")
        outputs = _ext.apply(name, arrays, attrs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    function.__name__ = function.__qualname__ = name
    function.__signature__ = signature  # type: ignore[attr-defined]
    lines = [_ext.op_doc(name)]
    if attributes:
        lines += ["", "Args:", *(f"    {key}: {doc}." for key, doc, _, _ in attributes)]
    function.__doc__ = "\n".join(lines)
    return function


_FUNCTIONS = _ext.function_names()
globals().update({name: _function(name) for name in _FUNCTIONS})
_glu: Callable[..., mx.array] = globals()["glu"]


def swiglu(x: mx.array, *more: mx.array) -> mx.array:
    """silu(gate) * up, in three forms (Shazeer, 2020).

    `swiglu(x)`: x [.., 2N] holds gate and up side by side. `swiglu(gate, up)`: two arrays of one
    shape. `swiglu(x, w_gate, w_up, w_down)`: the whole MLP, x [.., K], w_gate and w_up [F, K],
    w_down [D, F], all of x's dtype; [.., D].
    """
    if not more:
        return _glu(x, activation="silu")
    if len(more) == 1:
        return _ext.apply("swiglu", [x, *more], {})[0]
    if len(more) == 3:
        return _ext.apply("mlp", [x, *more], {"mode": "none", "activation": "silu"})[0]
    raise TypeError(f"[swiglu] expected 1, 2 or 4 arrays but got {1 + len(more)}.")


def geglu(x: mx.array, *, approximate: bool = False) -> mx.array:
    """gelu(x[.., :N]) * x[.., N:] for x [.., 2N]; `approximate` takes the tanh form."""
    return _glu(x, activation="gelu_tanh" if approximate else "gelu")


def rms_norm(x: mx.array, weight: mx.array, eps: float = 1e-5) -> mx.array:
    """x [.., N] times rsqrt(mean(x^2) + eps), times weight [N] (Zhang and Sennrich, 2019)."""
    return _ext.apply("rms_norm", [x, weight], {"eps": float(eps)})[0]


def dropout(x: mx.array, p: float | mx.array = 0.5, key: mx.array | None = None) -> mx.array:
    """x / (1 - p) where a random number is at least p, else 0 (Srivastava et al., 2014).

    One pass over x, whatever `p` and the key are. The random numbers are MLX's own for that key
    and shape (Threefry-2x32).

    Args:
        p: the probability of dropping an element, from 0 to 1, or an array of one float32.
        key: as `mx.random.key` makes it; by default drawn from MLX's global generator.

    Raises:
        ValueError: p is a number outside [0, 1].
    """
    if not isinstance(p, mx.array):
        if not 0 <= p <= 1:
            raise ValueError(f"[dropout] p must be from 0 to 1 but got {p}.")
        p = mx.array(p, mx.float32)
    if key is None:
        key = mx.random.randint(0, 2**32 - 1, (2,), mx.uint32)
    return _ext.apply("dropout", [x, key, p], {})[0]


_WRITTEN = (
    adamw_step,
    apply_rope,
    apply_rope_qk,
    conv1d_silu,
    depthwise_conv,
    dequantise,
    dropout,
    gated_delta_update,
    geglu,
    pack_bits,
    paged_attention,
    resize_bilinear,
    rms_norm,
    rope,
    rope_cache_update,
    rope_qk,
    rope_tables,
    swiglu,
    unpack_bits,
)
__all__ = sorted({*_FUNCTIONS, *(function.__name__ for function in _WRITTEN)})
