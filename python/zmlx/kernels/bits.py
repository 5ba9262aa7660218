# zmlx/kernels/bits.py: eight bits in a byte.
"""Packing and unpacking of bits, the lowest one first."""

from __future__ import annotations

import mlx.core as mx


def pack_bits(x: mx.array) -> mx.array:
    """Bytes (uint8) of eight elements each, a bit being 1 where the element is not 0."""
    if x.size % 8:
        raise ValueError(f"[pack_bits] x's size must be a multiple of 8 but got {x.size}.")
    weights = mx.array([1 << i for i in range(8)], mx.uint8)
    return ((x.reshape(-1, 8) != 0) * weights).sum(-1).astype(mx.uint8)


def unpack_bits(x: mx.array, original_shape: tuple[int, ...] | None = None) -> mx.array:
    """The bits of x as 0 and 1 (uint8), with one axis or `original_shape`."""
    bits = (x.reshape(-1, 1) >> mx.arange(8, dtype=mx.uint8)) & 1
    return bits.reshape(-1 if original_shape is None else original_shape)


__all__ = ["pack_bits", "unpack_bits"]
