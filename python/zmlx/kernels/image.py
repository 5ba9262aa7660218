# zmlx/kernels/image.py: bilinear resizing and depthwise convolution of images.
"""Images [N, H, W, C]."""

from __future__ import annotations

import mlx.core as mx

from zmlx.kernels.options import accepts, like


def _lines(x: mx.array, axis: int, size: int) -> mx.array:
    """x resized along one axis: pixels' centres are at half-integers, edges are repeated."""
    old = x.shape[axis]
    place = (mx.arange(size) + 0.5) * (old / size) - 0.5
    first = mx.floor(place)
    weight = (place - first).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    low, high = (
        mx.take(x, mx.clip(first + step, 0, old - 1).astype(mx.int32), axis=axis) for step in (0, 1)
    )
    return low * (1 - weight) + high * weight


@accepts("compute_dtype")
def resize_bilinear(x: mx.array, output_shape: tuple[int, int]) -> mx.array:
    """x [N, H, W, C] resized to `output_shape`, without antialiasing."""
    if x.ndim != 4 or min(output_shape) < 1:
        raise ValueError(
            f"[resize_bilinear] expected x [N, H, W, C] and a size of at least (1, 1) but got "
            f"{x.shape} and {tuple(output_shape)}."
        )
    height, width = output_shape
    return _lines(_lines(x.astype(mx.float32), 1, height), 2, width).astype(x.dtype)


@accepts("compute_dtype")
def depthwise_conv_3x3(x: mx.array, w: mx.array) -> mx.array:
    """Each channel of x [N, H, W, C] correlated with its filter, w [3, 3, C], in a border of 0."""
    if x.ndim != 4 or w.shape != (3, 3, x.shape[-1]):
        raise ValueError(
            f"[depthwise_conv_3x3] expected x [N, H, W, C] and w [3, 3, C] but got "
            f"{x.shape} and {w.shape}."
        )
    filters = like(x, w.transpose(2, 0, 1)[..., None])[0]
    return mx.conv2d(x, filters, padding=1, groups=x.shape[-1])


__all__ = ["depthwise_conv_3x3", "resize_bilinear"]
