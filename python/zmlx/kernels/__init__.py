# zmlx/kernels/__init__.py: the kernel catalogue of the Python project zmlx, on top of zmlx.ops.
"""Functions under the names that code for the Python project of the same name uses.

`from zmlx.kernels import norms, softmax, transformer`: each module has that project's functions,
with its arguments. They compute in float32, keep the dtype of their first input unless they say
otherwise, take any strides and have gradients. docs/catalogue.md lists them all and what differs.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "activations",
    "activations_dsl",
    "attention",
    "bits",
    "deltanet",
    "discovered",
    "fused",
    "fused_moe",
    "image",
    "indexing",
    "linear",
    "loss",
    "moe",
    "norms",
    "optimizers",
    "quant",
    "reductions",
    "rope",
    "scan",
    "skv",
    "softmax",
    "transformer",
    "vlsp",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"zmlx.kernels.{name}")
    raise AttributeError(f"module 'zmlx.kernels' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
