# zmlx/kernels/quant.py: quantised weights back to floats, and gated units straight from codes.
"""Dequantisation, alone or with what follows it; results are float32 unless `compute_dtype` says
otherwise.

`scale` is one number. Codes of 4 bits are two in a byte, the lower half first, and such an array
comes back with one axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from zmlx import ops
from zmlx.kernels.options import accepts, check_dtype, like, returns


def _values(x: mx.array, scale: mx.array, format: str, **options: Any) -> mx.array:
    """Codes times a scale; two codes in a byte come back with one axis."""
    packed = format in ("uint4", "nf4")
    codes = x.reshape(-1) if packed else x
    return ops.dequantise_blocks(codes, scale.astype(mx.float32), format=format, **options)


def _bytes(x: mx.array, scales: mx.array, block_size: int, activation: str = "none") -> mx.array:
    """Codes of 8 bits, signed or not, times the scales of their blocks."""
    options = {"block_size": block_size, "activation": activation}
    return _values(x, scales, "uint8" if x.dtype == mx.uint8 else "int8", **options)


@returns(mx.float32)
def dequantize_int8(x: mx.array, scale: mx.array) -> mx.array:
    """x * scale for x int8."""
    return _values(x, scale, "int8")


@returns(mx.float32)
def dequantize_silu_int8(x: mx.array, scale: mx.array) -> mx.array:
    """silu(x * scale) for x int8."""
    return _values(x, scale, "int8", activation="silu")


@returns(mx.float32)
def dequantize_int4(x: mx.array, scale: mx.array) -> mx.array:
    """code * scale for codes 0 to 15, two in each byte of x."""
    return _values(x, scale, "uint4")


@returns(mx.float32)
def dequantize_blockwise(
    x: mx.array, scales: mx.array, *, block_size: int = 128, bits: int = 8
) -> mx.array:
    """code * the scale of its block, with one axis: x of 8 bits, or codes 0 to 15 for 4 bits."""
    if bits not in (4, 8):
        raise ValueError(f"[dequantize_blockwise] bits must be 4 or 8 but got {bits}.")
    if bits == 8:
        return _bytes(x.reshape(-1), scales, block_size)
    return _values(x, scales, "uint4", block_size=block_size)


@returns(mx.float32)
def dequantize_fp8(x: mx.array, scale: mx.array, *, variant: str = "e4m3") -> mx.array:
    """Values of bytes x times scale; `variant` is e4m3 (no infinities) or e5m2."""
    if variant not in ("e4m3", "e5m2"):
        raise ValueError(f"[dequantize_fp8] variant must be e4m3 or e5m2 but got {variant}.")
    return _values(x, scale, variant)


@returns(mx.float32)
def dequantize_nf4(x: mx.array, scale: mx.array) -> mx.array:
    """Quantiles of a normal distribution (NF4), two codes in each byte of x, times scale."""
    return _values(x, scale, "nf4")


def _affine(name: str, activation: str, doc: str) -> Callable[..., mx.array]:
    def function(
        x: mx.array,
        scales: mx.array,
        biases: mx.array,
        *,
        bits: int = 4,
        group_size: int = 64,
        compute_dtype: mx.Dtype | None = None,
    ) -> mx.array:
        check_dtype(name, compute_dtype)
        return ops.dequantise(
            x,
            scales,
            biases,
            group_size,
            bits,
            activation=activation,
            dtype=compute_dtype or mx.float32,
        )

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


dequantize_affine_packed = _affine(
    "dequantize_affine_packed",
    "none",
    """code * scale + bias for x [.., words], scales and biases [.., groups] of mx.quantize.

    2, 3, 4, 5, 6 or 8 bits without gaps: [.., 32 * words / bits].
    """,
)
dequantize_affine_packed_silu = _affine(
    "dequantize_affine_packed_silu", "silu", "silu of dequantize_affine_packed."
)
dequantize_affine_packed_gelu = _affine(
    "dequantize_affine_packed_gelu", "gelu_tanh", "gelu_tanh of dequantize_affine_packed."
)


@returns(mx.float32)
def dequantize_affine_packed_hi2(
    x: mx.array, scales: mx.array, biases: mx.array, *, group_size: int = 64
) -> mx.array:
    """dequantize_affine_packed of 4-bit codes whose lower two bits are taken to be 0."""
    return dequantize_affine_packed(x & 0xCCCCCCCC, scales, biases, group_size=group_size)


@returns(mx.float32)
def dequantize_affine_packed_lo2_delta(
    x: mx.array, scales: mx.array, biases: mx.array, *, group_size: int = 64
) -> mx.array:
    """What the lower two bits of 4-bit codes add to dequantize_affine_packed_hi2."""
    none = mx.zeros_like(biases)
    return dequantize_affine_packed(x & 0x33333333, scales, none, group_size=group_size)


@returns(mx.float32)
def fused_swiglu_quant(
    x1: mx.array, scales1: mx.array, x2: mx.array, scales2: mx.array, *, block_size: int = 128
) -> mx.array:
    """silu(x1 * scale) * (x2 * scale) for int8 codes of one shape, a scale for each block."""
    if x1.shape != x2.shape:
        raise ValueError(
            f"[fused_swiglu_quant] x2 must have x1's shape {x1.shape} but got {x2.shape}."
        )
    return _bytes(x1, scales1, block_size, "silu") * _bytes(x2, scales2, block_size)


@returns(mx.float32)
def fused_quantized_swiglu_gemv(
    x: mx.array,
    gate_w: mx.array,
    gate_scales: mx.array,
    gate_biases: mx.array,
    up_w: mx.array,
    up_scales: mx.array,
    up_biases: mx.array,
    *,
    group_size: int,
    bits: int,
) -> mx.array:
    """silu(x @ gate.T) * (x @ up.T) for x [.., K] and weights [N, K] as mx.quantize gives them."""

    stacks = (a[None] for a in (gate_w, gate_scales, gate_biases, up_w, up_scales, up_biases))
    only = mx.zeros((*x.shape[:-1], 1), mx.uint32)
    (like_scales,) = like(gate_scales, x)
    y = ops.gather_qmm_swiglu(like_scales, *stacks, only, group_size=group_size, bits=bits)
    return y[..., 0, :]


@accepts("threadgroup")
@returns(mx.float32)
def fused_quantized_swiglu_gemv_progressive(
    x: mx.array,
    gate_w: mx.array,
    gate_scales: mx.array,
    gate_biases: mx.array,
    up_w: mx.array,
    up_scales: mx.array,
    up_biases: mx.array,
    *,
    group_size: int,
    bits: int,
    epsilon: float,
    per_group: bool = False,
) -> mx.array:
    """fused_quantized_swiglu_gemv, whose products may be off by `epsilon`.

    All bits of a code are in one word, so nothing is won by leaving some out: the result is exact
    for any `epsilon` from 0. A negative one asks for the upper two bits of each code alone.
    """
    masks = {4: 0xCCCCCCCC, 8: 0xC0C0C0C0}
    if bits not in masks:
        raise ValueError(
            f"[fused_quantized_swiglu_gemv_progressive] bits must be 4 or 8 but got {bits}."
        )
    gate, up = (w if epsilon >= 0 else w & masks[bits] for w in (gate_w, up_w))
    return fused_quantized_swiglu_gemv(
        x,
        gate,
        gate_scales,
        gate_biases,
        up,
        up_scales,
        up_biases,
        group_size=group_size,
        bits=bits,
    )


__all__ = [
    "dequantize_affine_packed",
    "dequantize_affine_packed_gelu",
    "dequantize_affine_packed_hi2",
    "dequantize_affine_packed_lo2_delta",
    "dequantize_affine_packed_silu",
    "dequantize_blockwise",
    "dequantize_fp8",
    "dequantize_int4",
    "dequantize_int8",
    "dequantize_nf4",
    "dequantize_silu_int8",
    "fused_quantized_swiglu_gemv",
    "fused_quantized_swiglu_gemv_progressive",
    "fused_swiglu_quant",
]
