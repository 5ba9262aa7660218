# tests/python/test_kernels_quant.py: dequantisation, bits, and gated units from codes.
from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact, normal

from zmlx.kernels import bits, quant

RANDOM = np.random.default_rng(0)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def unpacked(words: np.ndarray, width: int) -> np.ndarray:
    """Codes that lie in words of 32 bits without gaps, the lowest bits first."""
    shape = words.shape[:-1]
    stream = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")
    stream = stream.reshape(*shape, -1, width).astype(np.int64)
    return (stream << np.arange(width)).sum(-1)


@pytest.mark.parametrize("width", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 128])
def test_dequantize_affine_packed_of_3_5_6_bits(width: int, group_size: int) -> None:
    words, scales, biases = mx.quantize(normal(5, 256), group_size, width)
    codes = unpacked(np.array(words), width)
    assert codes.shape == (5, 256)
    want = codes * np.repeat(exact(scales), group_size, -1)
    want += np.repeat(exact(biases), group_size, -1)
    options = {"bits": width, "group_size": group_size}
    close(quant.dequantize_affine_packed(words, scales, biases, **options), want)
    close(quant.dequantize_affine_packed_silu(words, scales, biases, **options), silu(want))
    close(quant.dequantize_affine_packed_gelu(words, scales, biases, **options), gelu_tanh(want))
    half = quant.dequantize_affine_packed(
        words, scales, biases, **options, compute_dtype=mx.float16
    )
    assert half.dtype == mx.float16
    close(half, want)


def test_the_high_and_low_bits_of_codes_add_up() -> None:
    words, scales, biases = mx.quantize(normal(3, 128), 64, 4)
    codes = unpacked(np.array(words), 4)
    scale, bias = (np.repeat(exact(a), 64, -1) for a in (scales, biases))
    high = quant.dequantize_affine_packed_hi2(words, scales, biases)
    low = quant.dequantize_affine_packed_lo2_delta(words, scales, biases)
    close(high, (codes & 12) * scale + bias)
    close(low, (codes & 3) * scale)
    close(high + low, exact(quant.dequantize_affine_packed(words, scales, biases)))


def test_int8_and_its_silu() -> None:
    codes = mx.array(RANDOM.integers(-128, 128, (3, 33)), mx.int8)
    for scale in (mx.array(0.03), mx.array([0.03])):
        close(quant.dequantize_int8(codes, scale), exact(codes) * np.float32(0.03))
        close(quant.dequantize_silu_int8(codes, scale), silu(exact(codes) * np.float32(0.03)))
    assert quant.dequantize_int8(codes, scale, compute_dtype=mx.bfloat16).dtype == mx.bfloat16


def test_int4_is_unsigned_and_the_lower_half_comes_first() -> None:
    x = mx.array([0x21, 0xF0, 0x8A], mx.uint8)
    assert quant.dequantize_int4(x, mx.array(2.0)).tolist() == [2, 4, 0, 30, 20, 16]


@settings(max_examples=15, deadline=None, derandomize=True)
@given(blocks=st.integers(1, 5), block_size=st.sampled_from([2, 32, 128]), rest=st.integers(0, 1))
def test_blocks_have_scales_of_their_own(blocks, block_size, rest) -> None:
    count = blocks * block_size - rest * block_size // 2
    codes = RANDOM.integers(-128, 128, count).astype(np.int8)
    scales = normal(blocks)
    each = np.repeat(exact(scales), block_size)[:count]
    got = quant.dequantize_blockwise(mx.array(codes), scales, block_size=block_size)
    close(got, codes * each)
    packed = mx.array(RANDOM.integers(0, 256, -(-count // 2)), mx.uint8)
    pairs = np.stack([np.array(packed) & 15, np.array(packed) >> 4], -1).reshape(-1)
    got = quant.dequantize_blockwise(packed, scales, block_size=block_size, bits=4)
    close(got, pairs * np.repeat(exact(scales), block_size)[: pairs.size])


def fp8(byte: int, exponent: int, mantissa: int) -> float:
    """The value of a byte with these many bits of exponent and mantissa."""
    bias = (1 << (exponent - 1)) - 1
    sign = -1.0 if byte & 128 else 1.0
    e, m = byte >> mantissa & ((1 << exponent) - 1), byte & ((1 << mantissa) - 1)
    if exponent == 4 and byte & 127 == 127:
        return float("nan")
    if exponent == 5 and e == 31:
        return sign * float("inf") if m == 0 else float("nan")
    return sign * (
        2.0 ** (e - bias) * (1 + m / 2**mantissa) if e else 2.0 ** (1 - bias) * m / 2**mantissa
    )


@pytest.mark.parametrize(("variant", "exponent", "mantissa"), [("e4m3", 4, 3), ("e5m2", 5, 2)])
def test_every_byte_of_fp8(variant: str, exponent: int, mantissa: int) -> None:
    x = mx.arange(256).astype(mx.uint8)
    want = np.array([fp8(i, exponent, mantissa) for i in range(256)])
    got = exact(quant.dequantize_fp8(x, mx.array(1.0), variant=variant))
    np.testing.assert_array_equal(got, want)
    doubled = exact(quant.dequantize_fp8(x, mx.array([2.0]), variant=variant))
    np.testing.assert_array_equal(doubled, 2 * want)


def test_nf4_are_the_quantiles_of_qlora() -> None:
    x = mx.array([0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE], mx.uint8)
    got = exact(quant.dequantize_nf4(x, mx.array(1.0)))
    assert (np.diff(got) > 0).all()
    assert (got[0], got[7], got[15]) == (-1, 0, 1)
    close(mx.array(got[[1, 8]]), [-0.6961928009986877, 0.07958029955625534])
    close(quant.dequantize_nf4(x, mx.array(3.0)), 3 * got)


@pytest.mark.parametrize("shape", [(256,), (3, 100)])
def test_fused_swiglu_quant_is_swiglu(shape: tuple[int, ...]) -> None:
    a, b = (mx.array(RANDOM.integers(-128, 128, shape), mx.int8) for _ in range(2))
    scales = [mx.abs(normal(-(-a.size // 64), seed=i)) / 50 for i in (1, 2)]
    each = [np.repeat(exact(s), 64)[: a.size].reshape(shape) for s in scales]
    got = quant.fused_swiglu_quant(a, scales[0], b, scales[1], block_size=64)
    close(got, silu(exact(a) * each[0]) * exact(b) * each[1])


@pytest.mark.parametrize(("width", "group_size"), [(4, 64), (8, 32)])
def test_gated_products_of_codes(width: int, group_size: int) -> None:
    x = normal(3, 128)
    sides = [mx.quantize(normal(24, 128, seed=i) / 8, group_size, width) for i in (1, 2)]
    options = {"bits": width, "group_size": group_size}

    def plain(mask: int = 0xFFFFFFFF) -> np.ndarray:
        gate, up = (
            exact(x) @ exact(mx.dequantize(w & mask, s, b, group_size, width)).T
            for w, s, b in sides
        )
        return silu(gate) * up

    close(quant.fused_quantized_swiglu_gemv(x, *sides[0], *sides[1], **options), plain(), 1e-4)
    progressive = quant.fused_quantized_swiglu_gemv_progressive
    for epsilon in (0.0, 0.5, 1e9):
        got = progressive(x, *sides[0], *sides[1], **options, epsilon=epsilon, per_group=True)
        close(got, plain(), 1e-4)
    coarse = progressive(x, *sides[0], *sides[1], **options, epsilon=-1.0, threadgroup=64)
    close(coarse, plain(0xCCCCCCCC if width == 4 else 0xC0C0C0C0), 1e-4)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(size=st.integers(0, 40), seed=st.integers(0, 99))
def test_bits_are_packed_and_unpacked(size: int, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 2, 8 * size).astype(bool)
    packed = bits.pack_bits(mx.array(x))
    assert packed.dtype == mx.uint8
    np.testing.assert_array_equal(np.array(packed), np.packbits(x, bitorder="little"))
    back = bits.unpack_bits(packed, (size, 8))
    assert (back.dtype, back.shape) == (mx.uint8, (size, 8))
    np.testing.assert_array_equal(np.array(back).reshape(-1), x)
    assert bits.unpack_bits(packed).shape == (8 * size,)


def test_any_number_but_zero_packs_as_one_and_any_size_packs() -> None:
    x = mx.array([[0, 7, 255, 0], [1, 0, 2, 0]], mx.uint8)
    assert bits.pack_bits(x).tolist() == [0b01010110]
    assert bits.pack_bits(mx.ones(9)).tolist() == [255, 1]


X = mx.zeros((2, 8), mx.uint32)
S = mx.zeros((2, 1))
MISTAKES = [
    (
        lambda: quant.dequantize_blockwise(X, S, bits=5),
        "[dequantize_blockwise] bits must be 4 or 8 but got 5.",
    ),
    (
        lambda: quant.dequantize_fp8(X, S, variant="e3m4"),
        "[dequantize_fp8] variant must be e4m3 or e5m2 but got e3m4.",
    ),
    (
        lambda: quant.fused_swiglu_quant(X, S, X[0], S),
        "[fused_swiglu_quant] x2 must have x1's shape (2, 8) but got (8,).",
    ),
    (
        lambda: quant.fused_quantized_swiglu_gemv_progressive(
            S, X, S, S, X, S, S, group_size=32, bits=3, epsilon=0.0
        ),
        "[fused_quantized_swiglu_gemv_progressive] bits must be 4 or 8 but got 3.",
    ),
    (
        lambda: quant.dequantize_int8(X, S, compute_dtype=mx.int8),
        "[dequantize_int8] compute_dtype must be float32, float16, bfloat16 or None but got",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_gradients_reach_scales_and_activations() -> None:
    words, scales, biases = mx.quantize(normal(4, 64), 64, 4)
    slope = mx.grad(lambda s: quant.dequantize_affine_packed(words, s, biases).sum())(scales)
    close(slope, unpacked(np.array(words), 4).sum(-1, keepdims=True))
    x = normal(2, 64, seed=5)

    def gated(x):
        return quant.fused_quantized_swiglu_gemv(
            x, words, scales, biases, words, scales, biases, group_size=64, bits=4
        ).sum()

    dense = mx.dequantize(words, scales, biases, 64, 4)
    want = mx.grad(lambda x: ((x @ dense.T) * mx.sigmoid(x @ dense.T) * (x @ dense.T)).sum())(x)
    close(mx.grad(gated)(x), want, 1e-4)
