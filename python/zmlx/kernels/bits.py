# zmlx/kernels/bits.py: eight bits in a byte.
"""Packing and unpacking of bits, the lowest one first."""

from __future__ import annotations

import mlx.core as mx

from zmlx import ops


def pack_bits(x: mx.array) -> mx.array:
    """Bytes (uint8) of eight elements each, a bit being 1 where the element is not 0.

    The last byte is filled up with zeros.
    """
    return ops.pack_bits(x)


def unpack_bits(x: mx.array, original_shape: tuple[int, ...] | None = None) -> mx.array:
    """The bits of x as 0 and 1 (uint8), with one axis or `original_shape`."""
    return ops.unpack_bits(x, original_shape).astype(mx.uint8)


__all__ = ["pack_bits", "unpack_bits"]
