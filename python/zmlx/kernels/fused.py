# zmlx/kernels/fused.py: builders of elementwise functions of two arrays.
"""`silu_mul_grad()(a, b)`, `bias_silu(c=1024)(x, bias)`: all have gradients in both arrays."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from zmlx import elementwise, ops
from zmlx.kernels.options import check_dtype, check_key, like

Binary = Callable[[mx.array, mx.array], mx.array]


def _builder(name: str, function: Binary, formula: str) -> Callable[..., Binary]:
    def build(*, compute_dtype_key: str = "float32") -> Binary:
        check_key(name, compute_dtype_key)
        return function

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"A function of arrays a and b of one shape: {formula}."
    return build


def _with_bias(name: str, kernel: Binary, formula: str) -> Callable[..., Binary]:
    def build(*, c: int, compute_dtype: mx.Dtype | None = None) -> Binary:
        check_dtype(name, compute_dtype)

        def function(x: mx.array, bias: mx.array) -> mx.array:
            for argument, shape in (("x", x.shape[-1:]), ("bias", bias.shape)):
                if tuple(shape) != (c,):
                    what = "last axis" if argument == "x" else "shape"
                    raise ValueError(
                        f"[{name}] {argument}'s {what} must be ({c},) but got {tuple(shape)}."
                    )
            return kernel(x, *like(x, bias))

        return function

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"A function of x [.., c] and bias [c]: {formula}."
    return build


add = _builder("add", mx.add, "a + b")
mul = _builder("mul", mx.multiply, "a * b")
silu_mul_grad = _builder("silu_mul_grad", ops.silu_mul, "silu(a) * b")
add_bias = _with_bias("add_bias", mx.add, "x + bias")
bias_gelu_tanh = _with_bias(
    "bias_gelu_tanh",
    elementwise("gelu_tanh(x + bias)", inputs=("x", "bias"), name="bias_gelu_tanh"),
    "gelu_tanh(x + bias)",
)
bias_silu = _with_bias(
    "bias_silu",
    elementwise("silu(x + bias)", inputs=("x", "bias"), name="bias_silu"),
    "silu(x + bias)",
)
__all__ = ["add", "add_bias", "bias_gelu_tanh", "bias_silu", "mul", "silu_mul_grad"]
