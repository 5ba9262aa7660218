# zmlx/kernels/quant.py: quantised weights back to floats, and gated units straight from codes.
"""Dequantisation, alone or with what follows it; results are float32 unless `compute_dtype` says
otherwise.

`scale` is one number. Codes of 4 bits are two in a byte, the lower half first, and such an array
comes back with one axis.
"""

from __future__ import annotations

import mlx.core as mx

from zmlx import elementwise, ops
from zmlx.kernels.options import accepts, returns

_SWIGLU = elementwise(
    "silu(a * a_scale) * (b * b_scale)",
    inputs=("a", "a_scale", "b", "b_scale"),
    name="fused_swiglu_quant",
)
# The quantiles of a normal distribution (Dettmers et al., 2023).
# fmt: off
_NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]
# fmt: on


def _unpacked(x: mx.array) -> mx.array:
    """The halves of bytes, the lower one first, with one axis."""
    return mx.stack([x & 15, x >> 4], axis=-1).reshape(-1)


def _of_blocks(scales: mx.array, block_size: int, count: int) -> mx.array:
    """The scale of each of `count` elements."""
    return mx.repeat(scales.reshape(-1).astype(mx.float32), block_size)[:count]


@returns(mx.float32)
def dequantize_int8(x: mx.array, scale: mx.array) -> mx.array:
    """x * scale for x int8."""
    return x.astype(mx.float32) * scale


@returns(mx.float32)
def dequantize_silu_int8(x: mx.array, scale: mx.array) -> mx.array:
    """silu(x * scale) for x int8."""
    return ops.silu(x.astype(mx.float32) * scale)


@returns(mx.float32)
def dequantize_int4(x: mx.array, scale: mx.array) -> mx.array:
    """code * scale for codes 0 to 15, two in each byte of x."""
    return _unpacked(x).astype(mx.float32) * scale


@returns(mx.float32)
def dequantize_blockwise(
    x: mx.array, scales: mx.array, *, block_size: int = 128, bits: int = 8
) -> mx.array:
    """code * the scale of its block, with one axis: int8 codes, or codes 0 to 15 for 4 bits."""
    if bits not in (4, 8):
        raise ValueError(f"[dequantize_blockwise] bits must be 4 or 8 but got {bits}.")
    codes = x.reshape(-1) if bits == 8 else _unpacked(x)
    return codes.astype(mx.float32) * _of_blocks(scales, block_size, codes.size)


@returns(mx.float32)
def dequantize_fp8(x: mx.array, scale: mx.array, *, variant: str = "e4m3") -> mx.array:
    """Values of bytes x times scale; `variant` is e4m3 (no infinities) or e5m2."""
    if variant == "e4m3":
        return mx.from_fp8(x, mx.float32) * scale
    if variant == "e5m2":  # the upper half of a float16
        return (x.astype(mx.uint16) << 8).view(mx.float16).astype(mx.float32) * scale
    raise ValueError(f"[dequantize_fp8] variant must be e4m3 or e5m2 but got {variant}.")


@returns(mx.float32)
def dequantize_nf4(x: mx.array, scale: mx.array) -> mx.array:
    """Quantiles of a normal distribution (NF4), two codes in each byte of x, times scale."""
    return mx.array(_NF4)[_unpacked(x)] * scale


@returns(mx.float32)
def dequantize_affine_packed(
    x: mx.array, scales: mx.array, biases: mx.array, *, bits: int = 4, group_size: int = 64
) -> mx.array:
    """code * scale + bias for x [.., words], scales and biases [.., groups] of mx.quantize.

    2, 3, 4, 5, 6 or 8 bits without gaps: [.., 32 * words / bits].
    """
    wide = [a.astype(mx.float32) for a in (scales, biases)]
    return mx.dequantize(x, *wide, group_size=group_size, bits=bits)


@returns(mx.float32)
def dequantize_affine_packed_silu(
    x: mx.array, scales: mx.array, biases: mx.array, *, bits: int = 4, group_size: int = 64
) -> mx.array:
    """silu of dequantize_affine_packed."""
    return ops.silu(dequantize_affine_packed(x, scales, biases, bits=bits, group_size=group_size))


@returns(mx.float32)
def dequantize_affine_packed_gelu(
    x: mx.array, scales: mx.array, biases: mx.array, *, bits: int = 4, group_size: int = 64
) -> mx.array:
    """gelu_tanh of dequantize_affine_packed."""
    wide = dequantize_affine_packed(x, scales, biases, bits=bits, group_size=group_size)
    return ops.gelu_tanh(wide)


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
    sides = (
        a
        for x, s in ((x1, scales1), (x2, scales2))
        for a in (x.reshape(-1), _of_blocks(s, block_size, x.size))
    )
    return _SWIGLU(*sides).reshape(x1.shape)


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

    def projected(*weight: mx.array) -> mx.array:
        return mx.quantized_matmul(
            x, *weight, transpose=True, group_size=group_size, bits=bits
        ).astype(mx.float32)

    return ops.swiglu(
        projected(gate_w, gate_scales, gate_biases), projected(up_w, up_scales, up_biases)
    )


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
