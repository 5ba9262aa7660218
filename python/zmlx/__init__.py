# zmlx/__init__.py: checks that the extension fits the installed MLX, and names the package's parts.
"""Runs MLX models many times faster on CPU, from outside MLX.

from zmlx.patch import patch
model, tokenizer = mlx_lm.load("model")
patch(model)
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import mlx.core as mx

from zmlx.version import MLX_PACKAGE, version_of

__version__ = version_of("zmlx")

try:
    from zmlx import _ext
except ImportError as error:
    raise ImportError(
        f"zmlx's extension does not load with mlx {mx.__version__}: {error}. It is built for one "
        "version of mlx: reinstall both with `pip install --force-reinstall zmlx`, or build it "
        "in a checkout with `make`."
    ) from error

if _ext.mlx_version != mx.__version__:
    raise ImportError(
        f"zmlx was built for mlx {_ext.mlx_version} but mlx {mx.__version__} is installed. "
        f'Run: {sys.executable} -m pip install "{MLX_PACKAGE}=={_ext.mlx_version}"'
    )

# `zmlx.patch` is the module: a function of that name would hide `zmlx.patch.explain`.
_PARTS = (
    "autograd",
    "bench",
    "elementwise",
    "kernels",
    "metal",
    "nn",
    "ops",
    "optimizers",
    "patch",
    "presets",
    "profile",
    "rowwise",
    "testing",
)
_FUNCTIONS = {
    "compile": "zmlx.functions",
    "jit": "zmlx.just_in_time",
    "map_reduce": "zmlx.reductions",
    "reduce": "zmlx.reductions",
    "rewrite": "zmlx.functions",
    "smart_patch": "zmlx.smart",
}


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"zmlx.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'zmlx' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PARTS, *_FUNCTIONS])
