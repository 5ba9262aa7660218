# zmlx/kernels/activations.py: builders of elementwise activations.
"""`silu()(x)`: each builder returns a function of an array, which has gradients.

`exp_grad`, `silu_grad` and so on are the same functions. `compute_dtype_key` is checked and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from zmlx import elementwise, ops
from zmlx.kernels.options import check_key

Activation = Callable[[mx.array], mx.array]

_FUNCTIONS: dict[str, Activation] = {
    "exp": mx.exp,
    "log": mx.log,
    **{
        name: getattr(ops, name)
        for name in ("tanh", "sigmoid", "relu", "relu2", "silu", "gelu_tanh", "softplus", "mish")
    },
}
_ELU = elementwise("elu(x, alpha)", inputs=("x", "alpha"), name="elu")


def _builder(name: str, function: Activation) -> Callable[..., Activation]:
    def build(*, compute_dtype_key: str = "float32") -> Activation:
        check_key(name, compute_dtype_key)
        return function

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"A function of an array: {name.removesuffix('_grad')}, with gradients."
    return build


def elu(*, alpha: float = 1.0, compute_dtype_key: str = "float32") -> Activation:
    """A function of an array: x where x > 0, else alpha * (exp(x) - 1), with gradients."""
    check_key("elu", compute_dtype_key)
    return lambda x: _ELU(x, alpha)


elu_grad = elu
_NAMES = [*_FUNCTIONS, *(f"{name}_grad" for name in _FUNCTIONS if name != "log")]
globals().update({name: _builder(name, _FUNCTIONS[name.removesuffix("_grad")]) for name in _NAMES})
__all__ = sorted([*_NAMES, "elu", "elu_grad"])
