# zmlx/ops.py: the fused operations as functions of arrays, made from what the library says of each.
"""Fused operations on MLX arrays, with gradients.

Every function computes in float32, keeps its input's dtype (float32, float16 or bfloat16), works
along the last axis where it works on rows, and can be used inside `mx.grad`, `mx.vmap` and
`mx.compile`. Where there is no kernel for a device, it runs as plain MLX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
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
    known = {key for key, _, _, _ in attributes}
    call = _ext.caller(name)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arrays and attributes of a call in any form; errors give the signature."""
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            why = str(error).replace("required keyword-only", "required")  # as before Python 3.12
            raise TypeError(f"[{name}] {why}; the signature is {name}{signature}.") from None
        arrays: list[Any] = []
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                arrays += bound.arguments.get(parameter.name, ())
            elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                arrays.append(bound.arguments[parameter.name])
        return arrays, {key: bound.arguments[key] for key in known & bound.arguments.keys()}

    def function(*args: Any, **kwargs: Any) -> Any:
        usual = call(args, kwargs)  # without the cost of binding
        if usual is not None:
            return usual
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


Weight = mx.array | tuple[mx.array, ...]


def _weights(
    name: str, weights: Sequence[Weight], group_size: int | None, bits: int | None, mode: str
) -> tuple[list[mx.array], dict[str, Any]]:
    """The arrays of weights that are all dense or all quantised, and their attributes."""
    quantised = {not isinstance(weight, mx.array) for weight in weights}
    if quantised == {False}:
        return list(weights), {"mode": "none"}  # type: ignore[arg-type]
    if quantised != {True}:
        raise TypeError(f"[{name}] weights must be all arrays or all tuples of quantised arrays.")
    usual = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
    group, width = usual.get(mode, (0, 0))
    parts = 3 if mode == "affine" else 2
    for weight in weights:
        if len(weight) != parts:
            raise TypeError(
                f"[{name}] a quantised weight of mode {mode} must have {parts} arrays but got "
                f"{len(weight)}."
            )
    arrays = [array for weight in weights for array in weight]
    attrs = {"mode": mode, "group_size": group_size or group, "bits": bits or width}
    return arrays, attrs


def _gated(
    name: str,
    activation: str,
    x: mx.array,
    more: tuple[Weight, ...],
    group_size: int | None,
    bits: int | None,
    mode: str,
) -> mx.array:
    """The three forms of a gated unit."""
    if len(more) == 3:
        arrays, attrs = _weights(name, more, group_size, bits, mode)
        return _ext.apply("mlp", [x, *arrays], {**attrs, "activation": activation})[0]
    if len(more) > 1:
        raise TypeError(f"[{name}] expected 1, 2 or 4 arrays but got {1 + len(more)}.")
    if activation == "silu" and more:
        return _ext.apply("swiglu", [x, *more], {})[0]
    return _glu(x, *more, activation=activation)


def swiglu(
    x: mx.array,
    *more: Weight,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
) -> mx.array:
    """silu(gate) * up, in three forms (Shazeer, 2020).

    `swiglu(x)`: x [.., 2N] holds gate and up side by side. `swiglu(gate, up)`: two arrays of one
    shape. `swiglu(x, w_gate, w_up, w_down)`: the whole MLP, x [.., K], w_gate and w_up [F, K],
    w_down [D, F], of x's dtype; [.., D].

    Args:
        more: up, or the three weights: each an array, or each a tuple as `mx.quantize` makes it.
        group_size: of quantised weights, by default what `mx.quantize` takes for their mode.
        bits: of quantised weights, likewise.
        mode: of quantised weights: affine, mxfp4, mxfp8 or nvfp4.
    """
    return _gated("swiglu", "silu", x, more, group_size, bits, mode)


def geglu(
    x: mx.array,
    *more: Weight,
    approximate: bool = False,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
) -> mx.array:
    """gelu(gate) * up, in the three forms of `swiglu`; `approximate` takes gelu's tanh form."""
    activation = "gelu_tanh" if approximate else "gelu"
    return _gated("geglu", activation, x, more, group_size, bits, mode)


def silu_mul(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up for arrays of one shape and dtype: `swiglu` of two arrays."""
    return _ext.apply("swiglu", [gate, up], {})[0]


def rms_norm(x: mx.array, weight: mx.array | None = None, eps: float = 1e-5) -> mx.array:
    """x [.., N] times rsqrt(mean(x^2) + eps), times weight [N] (Zhang and Sennrich, 2019)."""
    return _ext.apply("rms_norm", _given(x, weight), {"eps": float(eps)})[0]


def rms_norm_dropout(
    x: mx.array,
    weight: mx.array | None = None,
    *,
    p: float | mx.array = 0.5,
    key: mx.array | None = None,
    eps: float = 1e-5,
) -> mx.array:
    """dropout(rms_norm(x, weight, eps), p, key) in one pass, with the same mask; see those two."""
    inputs = [x, *_key_and_probability("rms_norm_dropout", p, key), *_given(weight)]
    return _ext.apply("rms_norm_dropout", inputs, {"eps": float(eps)})[0]


def layer_norm_dropout(
    x: mx.array,
    *weight_and_bias: mx.array,
    p: float | mx.array = 0.5,
    key: mx.array | None = None,
    eps: float = 1e-5,
) -> mx.array:
    """dropout(layer_norm(x, *weight_and_bias), p, key) in one pass, with the same mask."""
    inputs = [x, *_key_and_probability("layer_norm_dropout", p, key), *weight_and_bias]
    return _ext.apply("layer_norm_dropout", inputs, {"eps": float(eps)})[0]


def masked_softmax(x: mx.array, mask: mx.array) -> mx.array:
    """softmax(x) along the last axis of x [.., N] under a mask that broadcasts to x.

    A bool mask leaves an element out where it is false; a floating one (float32 or x's dtype) is
    added. Rows of which nothing is left are zeros.
    """
    return _ext.apply("masked_softmax", [x, mask], {})[0]


def scale_mask_softmax(x: mx.array, mask: mx.array, scale: float | mx.array) -> mx.array:
    """`masked_softmax` of scale * x. `scale` is read when it runs and may be an array of one."""
    if not isinstance(scale, mx.array):
        scale = mx.array(scale, mx.float32)
    return _ext.apply("masked_softmax", [x, mask, scale], {})[0]


def scatter_add(
    indices: mx.array,
    updates: mx.array,
    rows: int | None = None,
    *,
    onto: mx.array | None = None,
) -> mx.array:
    """A table to whose row indices[..] each of the updates [.., N] is added; in updates' dtype.

    Sums are taken in float32 in the updates' order and rounded once: the same bits for any number
    of threads. The gradient with respect to the updates is a gather.

    Args:
        indices: int32, uint32 or int64; negative ones count from the end.
        updates: a row for each of the indices.
        rows: of the table, which begins as zeros.
        onto: the table [R, N] to add to instead; it is not changed.

    Raises:
        ValueError: when it runs, for an index outside the table.
    """
    if (rows is None) == (onto is None):
        raise TypeError("[scatter_add] exactly one of rows and onto must be given.")
    if onto is not None:
        rows = onto.shape[0] if onto.ndim else 0
    return _ext.apply("scatter_add", [indices, updates, *_given(onto)], {"rows": rows})[0]


def moe_combine(
    expert_outputs: mx.array,
    weights: mx.array,
    residual: mx.array | None = None,
    *,
    order: mx.array | None = None,
) -> mx.array:
    """The sum over k of weights[.., k] * expert_outputs[.., k, :], in float32, rounded once.

    Args:
        expert_outputs: [.., K, D]; with `order`, the rows [M, D] that `moe_dispatch` sorted.
        weights: [.., K], of the outputs' dtype or float32.
        residual: [.., D], added.
        order: uint32 [M], what `moe_dispatch` returned.

    Returns:
        [.., D] in the outputs' dtype.
    """
    arrays = _given(expert_outputs, weights, order, residual)
    attrs = {"sorted": int(order is not None), "residual": int(residual is not None)}
    return _ext.apply("moe_combine", arrays, attrs)[0]


def _stack(
    name: str,
    stacks: Sequence[tuple[mx.array | None, ...]],
    group_size: int | None,
    bits: int | None,
    mode: str,
) -> tuple[list[mx.array], dict[str, Any]]:
    """The arrays of stacks of experts' weights and their attributes; no scales: dense."""
    given = [_given(*stack) for stack in stacks]
    dense = all(len(arrays) == 1 for arrays in given)
    weights = [arrays[0] if dense else tuple(arrays) for arrays in given]
    return _weights(name, weights, group_size, bits, mode)


def gather_qmm_swiglu(
    x: mx.array,
    gate_w: mx.array,
    gate_scales: mx.array | None,
    gate_biases: mx.array | None,
    up_w: mx.array,
    up_scales: mx.array | None,
    up_biases: mx.array | None,
    rhs_indices: mx.array,
    *,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
) -> mx.array:
    """silu(gate_e(x)) * up_e(x) for the experts e = rhs_indices[.., k], in one pass.

    Args:
        x: [.., D].
        gate_w: the experts' codes, a stack [E, F, D] as `mx.quantize` makes it of the dense one;
            dense itself where the scales are None. `up_w` likewise.
        gate_biases: None for modes without biases.
        rhs_indices: uint32 [.., K].
        group_size: by default what `mx.quantize` takes for the mode; `bits` likewise.
        mode: affine, mxfp4, mxfp8 or nvfp4.

    Returns:
        [.., K, F].
    """
    stacks = [(gate_w, gate_scales, gate_biases), (up_w, up_scales, up_biases)]
    arrays, attrs = _stack("gather_qmm_swiglu", stacks, group_size, bits, mode)
    return _ext.apply("gather_qmm_swiglu", [x, rhs_indices, *arrays], attrs)[0]


def gather_qmm_combine(
    act: mx.array,
    w: mx.array,
    scales: mx.array | None,
    biases: mx.array | None,
    weights: mx.array,
    indices: mx.array,
    residual: mx.array | None = None,
    *,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
) -> mx.array:
    """The sum over k of weights[.., k] * down_e(act[.., k, :]), e = indices[.., k], in one pass.

    Args:
        act: [.., K, F].
        w: the experts' codes, a stack [E, D, F] as `mx.quantize` makes it of the dense one; dense
            itself where the scales are None.
        weights: [.., K], of act's dtype or float32.
        indices: uint32 [.., K].
        residual: [.., D], added.
        group_size: by default what `mx.quantize` takes for the mode; `bits` likewise.
        mode: affine, mxfp4, mxfp8 or nvfp4.

    Returns:
        [.., D], summed in float32.
    """
    arrays, attrs = _stack("gather_qmm_combine", [(w, scales, biases)], group_size, bits, mode)
    inputs = [act, indices, weights, *arrays, *_given(residual)]
    attrs["residual"] = int(residual is not None)
    return _ext.apply("gather_qmm_combine", inputs, attrs)[0]


def _given(*arrays: mx.array | None) -> list[mx.array]:
    return [array for array in arrays if array is not None]


def _key_and_probability(
    name: str, p: float | mx.array, key: mx.array | None
) -> tuple[mx.array, mx.array]:
    """Both as arrays; a key that is not given comes from MLX's global generator."""
    if not isinstance(p, mx.array):
        if not 0 <= p <= 1:
            raise ValueError(f"[{name}] p must be from 0 to 1 but got {p}.")
        p = mx.array(p, mx.float32)
    if key is None:
        key = mx.random.randint(0, 2**32 - 1, (2,), mx.uint32)
    return key, p


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
    return _ext.apply("dropout", [x, *_key_and_probability("dropout", p, key)], {})[0]


_WRITTEN = (
    adamw_step,
    apply_rope,
    apply_rope_qk,
    conv1d_silu,
    depthwise_conv,
    dequantise,
    dropout,
    gated_delta_update,
    gather_qmm_combine,
    gather_qmm_swiglu,
    geglu,
    layer_norm_dropout,
    masked_softmax,
    moe_combine,
    pack_bits,
    paged_attention,
    resize_bilinear,
    rms_norm,
    rms_norm_dropout,
    rope,
    rope_cache_update,
    rope_qk,
    rope_tables,
    scale_mask_softmax,
    scatter_add,
    silu_mul,
    swiglu,
    unpack_bits,
)
__all__ = sorted({*_FUNCTIONS, *(function.__name__ for function in _WRITTEN)})
