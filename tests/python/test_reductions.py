"""Expressions reduced over axes, against NumPy and MLX's gradients."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import zmlx

OPS = ["sum", "mean", "prod", "max", "min"]


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32), np.float64)


def check(got: mx.array, want: np.ndarray, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert np.allclose(wide(got), want, tolerance, tolerance)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, 2), (0, 1), ()])
def test_any_axes_of_any_order_in_memory(op, axis):
    x, y = normal(5, 33, 70), normal(70, 33, 5, seed=1).transpose(2, 1, 0)
    f = zmlx.map_reduce("0.9 + 0.1 * a * b", op, axis, inputs=("a", "b"))
    for a, b in ((x, x), (y, y), (x, y), (x[:, ::2], y[:, 16:]), (x[::-1], y[:1]), (x, x[0, 0])):
        want = 0.9 + 0.1 * wide(a) * wide(b)
        check(f(a, b), want if axis == () else getattr(np, op)(want, axis))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "shape", [(1,), (31,), (64,), (65,), (1, 300001), (300001, 1), (3, 200003)]
)
def test_long_and_short_rows_and_columns(op, shape):
    x = normal(*shape)
    for axis in range(len(shape)):
        f = zmlx.map_reduce("1 + 0.0001 * x", op, axis, keepdims=True)
        check(f(x), getattr(np, op)(1 + 0.0001 * wide(x), axis, keepdims=True), 1e-4)


def test_a_long_column_of_few():
    x = normal(40000, 7)
    check(zmlx.map_reduce("x * x", "sum", 0)(x), (wide(x) ** 2).sum(0))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    "dtype",
    [mx.bool_, mx.int8, mx.uint8, mx.int32, mx.uint32, mx.int64, mx.float16, mx.bfloat16],
    ids=str,
)
def test_dtypes_are_those_of_mlx(op, dtype):
    x = mx.array([[1, 0, 2, 3], [1, 1, 3, 1]]).astype(dtype)
    got, want = zmlx.reduce(op, 1)(x), getattr(mx, op)(x, 1)
    assert got.dtype == want.dtype
    check(got, wide(want), 2e-2)


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_first_and_second_order(op):
    f = zmlx.map_reduce("a * exp(0.3 * b)", op, 0, inputs=("a", "b"))

    def plain(a, b):
        return getattr(mx, op)(a * mx.exp(0.3 * b), 0)

    def slopes(g):
        return mx.grad(lambda a, b: (g(a, b) ** 2).sum(), argnums=(0, 1))

    def curves(g):
        return mx.grad(lambda a, b: (slopes(g)(a, b)[0] ** 2).sum(), argnums=(0, 1))

    a, b = normal(4, 9), normal(9, seed=1)
    for of in (slopes, curves):
        for got, want in zip(of(f)(a, b), of(plain)(a, b), strict=True):
            check(got, wide(want), 1e-4)


def test_jvp_vmap_and_compile():
    f = zmlx.map_reduce("x * x", "sum", -1)
    x = normal(4, 9)
    check(mx.jvp(f, [x], [x])[1][0], 2 * (wide(x) ** 2).sum(-1))
    check(mx.vmap(f, in_axes=1)(x), (wide(x) ** 2).sum(0))
    check(mx.compile(f)(x), (wide(x) ** 2).sum(-1))


def test_sums_are_exact_where_float32_is_not():
    x = mx.concatenate([mx.array([1e8]), mx.ones(1000), mx.array([-1e8])])
    assert zmlx.reduce("sum")(x).item() == 1000
    assert zmlx.reduce("sum", 0)(x[:, None] * mx.ones(2)).tolist() == [1000, 1000]


def test_nan_and_infinity_stay():
    x = mx.array([[1.0, float("nan")], [2.0, float("-inf")]])
    assert np.isnan(np.array(zmlx.reduce("max", 1)(x))).tolist() == [True, False]
    assert zmlx.reduce("min", 1)(x)[1].item() == float("-inf")


def test_of_nothing():
    x = mx.zeros((3, 0))
    assert zmlx.reduce("sum", 1)(x).tolist() == [0, 0, 0]
    assert zmlx.reduce("prod", 0)(x).shape == (0,)
    with pytest.raises(ValueError, match=r"\[reduce\] max takes at least 1 element but got 0"):
        zmlx.reduce("max", 1)(x)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"op must be sum, mean, prod, max or min but got median"):
        zmlx.reduce("median")
    with pytest.raises(ValueError, match=r"\[reduce\] axis must be from -1 to 0 .* but got 1"):
        zmlx.reduce("sum", 1)(mx.ones(2))
    with pytest.raises(ValueError, match=r"\[reduce\] axes must differ"):
        zmlx.reduce("sum", (0, -1))(mx.ones(2))
    with pytest.raises(ValueError, match=r"\[map_reduce\] shapes must broadcast"):
        zmlx.map_reduce("a + b", "sum", inputs=("a", "b"))(mx.ones(2), mx.ones(3))
    with pytest.raises(ValueError, match="unknown name 'z'"):
        zmlx.map_reduce("z")


def test_the_source_is_shown():
    assert "zmlx_columns" in zmlx.reduce("sum").source()
