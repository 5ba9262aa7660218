# zmlx/version.py: versions of installed packages, read without importing them.
"""What is installed, by the names of PyPI."""

from __future__ import annotations

import sys
from importlib import metadata

# On Linux the bare `mlx` package brings no backend.
MLX_PACKAGE = "mlx" if sys.platform == "darwin" else "mlx[cpu]"


def version_of(package: str) -> str:
    """The installed version of a package, or "unknown" (in a checkout that is not installed)."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
