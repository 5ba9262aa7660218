# zmlx/kernels/image.py: bilinear resizing and depthwise convolution of images.
"""Images [N, H, W, C]."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, like


@accepts("compute_dtype")
def resize_bilinear(x: mx.array, output_shape: tuple[int, int]) -> mx.array:
    """x [N, H, W, C] resized to `output_shape`, without antialiasing: pixels' centres are at
    half-integers, edges are repeated."""
    return ops.resize_bilinear(x, output_shape)


@accepts("compute_dtype")
def depthwise_conv_3x3(x: mx.array, w: mx.array) -> mx.array:
    """Each channel of x [N, H, W, C] correlated with its filter, w [3, 3, C], in a border of 0."""
    if w.shape[:2] != (3, 3):
        raise ValueError(f"[depthwise_conv_3x3] w must be (3, 3, C) but got {w.shape}.")
    return ops.depthwise_conv(x, *like(x, w))


__all__ = ["depthwise_conv_3x3", "resize_bilinear"]
