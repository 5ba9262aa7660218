# zmlx/kernels/discovered/glm_rmsnorm.py: RMS norm.
"""`zmlx.kernels.norms.rmsnorm` with eps by position, too."""

from __future__ import annotations

import mlx.core as mx

from zmlx.kernels.norms import rmsnorm


def glm_rmsnorm(x: mx.array, weight: mx.array, eps: float = 1e-6) -> mx.array:
    """x * rsqrt(mean(x^2) + eps) * weight."""
    return rmsnorm(x, weight, eps=eps)


__all__ = ["glm_rmsnorm"]
