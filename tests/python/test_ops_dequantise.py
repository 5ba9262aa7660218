# tests/python/test_ops_dequantise.py: values of every format, against NumPy in double precision.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import close, exact
from op_inputs import normal, strided
from scipy import special

from zmlx import ops

ACTIVATIONS = {
    "none": lambda x: x,
    "silu": lambda x: x * special.expit(x),
    "gelu": lambda x: x * special.ndtr(x),
}


def codes_of(w: mx.array, bits: int) -> np.ndarray:
    """Codes packed densely, the lowest bits first."""
    packed = np.array(w)
    octets = packed.view(np.uint8).reshape(*packed.shape[:-1], -1)
    unpacked = np.unpackbits(octets, axis=-1, bitorder="little")
    codes = unpacked.reshape(*packed.shape[:-1], -1, bits)
    return codes @ (1 << np.arange(bits))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.sampled_from([1, 31, 32, 33]),
    groups=st.integers(1, 5),
    group_size=st.sampled_from([32, 64, 128]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    dtype=st.sampled_from([mx.float32, mx.float16, mx.bfloat16]),
)
def test_affine_codes_of_every_width(bits, rows, groups, group_size, activation, dtype) -> None:
    dense = normal((rows, groups * group_size), bits, dtype)
    w, scales, biases = mx.quantize(dense, group_size, bits)
    got = ops.dequantise(w, scales, biases, group_size, bits, activation=activation)
    assert got.dtype == dtype
    s, b = (np.repeat(exact(x), group_size, -1) for x in (scales, biases))
    close(got, ACTIVATIONS[activation](codes_of(w, bits) * s + b))


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [None, mx.float32, mx.float16])
def test_short_floats_are_those_of_mlx(mode: str, dtype: mx.Dtype | None) -> None:
    w, scales = mx.quantize(normal((7, 96), 1), mode=mode)
    got = ops.dequantise(w, scales, mode=mode, dtype=dtype)
    assert got.dtype == (dtype or mx.bfloat16)
    assert mx.array_equal(got, mx.dequantize(w, scales, mode=mode, dtype=got.dtype))


def test_weights_may_have_any_rank_and_strides() -> None:
    w, scales, biases = mx.quantize(normal((3, 5, 128), 1))
    whole = ops.dequantise(w, scales, biases)
    assert mx.array_equal(ops.dequantise(strided(w), strided(scales), biases), whole)
    assert mx.array_equal(ops.dequantise(w[1, 2], scales[1, 2], biases[1, 2]), whole[1, 2])
    assert ops.dequantise(w[:0], scales[:0], biases[:0]).shape == (0, 5, 128)


def test_the_dtype_may_be_another_than_the_scales() -> None:
    w, scales, biases = mx.quantize(normal((3, 64), 1).astype(mx.bfloat16))
    wide = ops.dequantise(w, scales, biases, dtype=mx.float32)
    assert wide.dtype == mx.float32
    s, b = (np.repeat(exact(x), 64, -1) for x in (scales, biases))
    close(wide, codes_of(w, 4) * s + b)


def fp8(exponent_bits: int) -> np.ndarray:
    """All 256 values, NaN and infinities as OCP has them."""
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    exponent = (code & 127) >> mantissa_bits
    fraction = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    size = np.where(
        exponent, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias)
    )
    if exponent_bits == 4:
        size[(code & 127) == 127] = np.nan
    else:
        size[(code & 127) == 124] = np.inf
        size[(code & 127) > 124] = np.nan
    return np.where(code < 128, size, -size)


def nf4() -> np.ndarray:
    """Quantiles of the normal distribution (Dettmers et al., 2023), to the precision of float32."""
    offset = 0.9677083
    high = special.ndtri(np.linspace(offset, 0.5, 9)[:-1])
    low = -special.ndtri(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([high, [0.0], low]))
    return values / values.max()


TABLES = {
    "int8": np.where(np.arange(256) < 128, np.arange(256), np.arange(256) - 256.0),
    "uint8": np.arange(256.0),
    "int4": np.where(np.arange(16) < 8, np.arange(16), np.arange(16) - 16.0),
    "uint4": np.arange(16.0),
    "e4m3": fp8(4),
    "e5m2": fp8(5),
    "nf4": nf4(),
}


@pytest.mark.parametrize("format_", TABLES)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_every_code_has_its_value(format_: str, dtype: mx.Dtype) -> None:
    table = TABLES[format_]
    octets = mx.arange(256).astype(mx.uint8)
    x = octets.view(mx.int8) if format_ == "int8" else octets
    got = ops.dequantise_blocks(x, mx.array([0.5], dtype), format=format_)
    code = np.arange(256)
    if table.size == 16:
        code = np.stack([code & 15, code >> 4], -1).flatten()
    close(got, 0.5 * table[code])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([1, 2, 31, 32, 33, 1009]),
    block=st.sampled_from([0, 1, 7, 32, 128, 5000]),
    bits=st.sampled_from([4, 8]),
    activation=st.sampled_from(list(ACTIVATIONS)),
)
def test_blocks_have_scales_of_their_own(n, block, bits, activation) -> None:
    octets = mx.random.randint(0, 256, (3, n), key=mx.random.key(n)).astype(mx.uint8)
    count = octets.size * 8 // bits
    scales = normal((-(-count // block) if block else 1,), 2) / 64
    format_ = "uint8" if bits == 8 else "int4"
    got = ops.dequantise_blocks(
        octets, scales, format=format_, block_size=block, activation=activation
    )
    code = np.array(octets)
    if bits == 4:
        code = np.stack([code & 15, code >> 4], -1).reshape(3, -1)
    each = np.repeat(exact(scales), block or count)[:count].reshape(code.shape)
    close(got, ACTIVATIONS[activation](TABLES[format_][code] * each))


def test_scales_have_a_gradient() -> None:
    x = mx.array([[1, -2, 3, 4]], mx.int8)
    got = mx.grad(lambda s: ops.dequantise_blocks(x, s, format="int8", block_size=2).sum())(
        mx.ones((2,))
    )
    assert got.tolist() == [-1.0, 7.0]


W, SCALES, BIASES = mx.quantize(mx.zeros((2, 64)))
BYTES = mx.zeros((4,), mx.uint8)
MISTAKES = [
    (
        lambda: ops.dequantise(W, SCALES, BIASES, bits=7),
        "[dequantise] bits must be 2, 3, 4, 5, 6 or 8 but got 7.",
    ),
    (
        lambda: ops.dequantise(W, SCALES, BIASES, bits=8),
        "[dequantise] w must have shape (2, 16) but got (2, 8).",
    ),
    (
        lambda: ops.dequantise(W, SCALES, BIASES, mode="fp4"),
        "[dequantise] mode must be affine, mxfp4, mxfp8, nvfp4 or none but got fp4.",
    ),
    (
        lambda: ops.dequantise(W, SCALES, BIASES, mode="none"),
        "[dequantise] mode must be affine, mxfp4, mxfp8 or nvfp4 but got none.",
    ),
    (lambda: ops.dequantise(W, SCALES), "[dequantise] expected 3 inputs but got 2."),
    (
        lambda: ops.dequantise(W, SCALES, BIASES, activation="step"),
        "[dequantise] activation must be one of silu, ",
    ),
    (
        lambda: ops.dequantise(W, SCALES, BIASES, dtype=mx.int32),
        "[dequantise] dtype must be float32, float16 or bfloat16 but got int32.",
    ),
    (
        lambda: ops.dequantise(mx.array(1, mx.uint32), SCALES, BIASES),
        "[dequantise] w must have at least 1 axis but got a number.",
    ),
    (
        lambda: ops.dequantise_blocks(BYTES, mx.ones((1,)), format="int9"),
        "[dequantise_blocks] format must be one of int8, uint8, int4, uint4, e4m3, e5m2, nf4 but "
        "got int9.",
    ),
    (
        lambda: ops.dequantise_blocks(BYTES, mx.ones((1,)), format="int8"),
        "[dequantise_blocks] x must be int8 but got uint8.",
    ),
    (
        lambda: ops.dequantise_blocks(BYTES, mx.ones((2,)), format="uint8"),
        "[dequantise_blocks] scales must have 1 element, one for each block, but got shape (2,).",
    ),
    (
        lambda: ops.dequantise_blocks(BYTES, mx.ones((2,)), format="nf4", block_size=3),
        "[dequantise_blocks] scales must have 3 elements, one for each block, but got shape (2,).",
    ),
    (
        lambda: ops.dequantise_blocks(BYTES, mx.ones((1,)), format="nf4", block_size=-1),
        "[dequantise_blocks] block_size must not be negative but got -1.",
    ),
    (
        lambda: ops.dequantise_blocks(mx.array(1, mx.uint8), mx.ones((1,)), format="nf4"),
        "[dequantise_blocks] x must have at least 1 axis but got a number.",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
