# tests/python/test_ops_bits.py: packed booleans against numpy.packbits.
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_inputs import strided

from zmlx import ops


def random_bools(shape: tuple[int, ...], seed: int = 1) -> mx.array:
    return mx.random.bernoulli(0.5, shape, key=mx.random.key(seed))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(0, 33), min_size=0, max_size=3), seed=st.integers(0, 99))
def test_any_shape_packs_as_numpy_and_comes_back(shape: list[int], seed: int) -> None:
    x = random_bools(tuple(shape), seed)
    packed = ops.pack_bits(x)
    assert packed.dtype == mx.uint8
    np.testing.assert_array_equal(
        np.array(packed), np.packbits(np.array(x).flatten(), bitorder="little")
    )
    back = ops.unpack_bits(packed, shape)
    assert back.dtype == mx.bool_
    assert back.shape == tuple(shape)
    assert mx.array_equal(back, x)


def test_large_arrays_and_strides() -> None:
    x = strided(random_bools((257, 1009)))
    packed = ops.pack_bits(x)
    np.testing.assert_array_equal(
        np.array(packed), np.packbits(np.array(x).flatten(), bitorder="little")
    )
    assert mx.array_equal(ops.unpack_bits(packed, x.shape), x)


def test_numbers_are_true_where_they_are_not_zero() -> None:
    assert ops.pack_bits(mx.array([0.0, -2.5, float("nan"), 0.0, 1.0])).tolist() == [0b10110]
    assert ops.pack_bits(mx.array([0, 7, 0])).tolist() == [2]


def test_without_a_shape_all_bits_come_back() -> None:
    assert ops.unpack_bits(mx.array([1, 130], mx.uint8)).tolist() == [
        *(True, False, False, False, False, False, False, False),
        *(False, True, False, False, False, False, False, True),
    ]


MISTAKES = [
    (
        lambda: ops.unpack_bits(mx.zeros((2,))),
        "[unpack_bits] x must be uint8 but got float32.",
    ),
    (
        lambda: ops.unpack_bits(mx.zeros((2,), mx.uint8), (17,)),
        "[unpack_bits] shape must have 9 to 16 elements, as x has bits, but got (17,).",
    ),
    (
        lambda: ops.unpack_bits(mx.zeros((2,), mx.uint8), (2, 4)),
        "[unpack_bits] shape must have 9 to 16 elements, as x has bits, but got (2, 4).",
    ),
    (
        lambda: ops.unpack_bits(mx.zeros((2,), mx.uint8), (-2, -5)),
        "[unpack_bits] shape must have 9 to 16 elements, as x has bits, but got (-2, -5).",
    ),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
        call()
    assert message in str(error.value)
