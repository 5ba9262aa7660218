"""Python functions traced into kernels, against the same functions run by MLX."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import zmlx
from zmlx import _ext
from zmlx.tracing import BINARY, LAYERS, UNARY

SCALE = mx.array([1.0, 2.0, 3.0])


def normal(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def same(got: mx.array, want: mx.array, tolerance: float = 2e-5) -> None:
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    a, b = (np.array(x.astype(mx.float32)) for x in (got, want))
    assert np.allclose(a, b, tolerance, tolerance, equal_nan=True)


def swish(x):
    return x * mx.sigmoid(x)


def polynomial(x, order=3):
    y = 1.0
    for k in range(3):
        y = y * x + k
    return y + order


def gated(x, gate, low=-1.5):
    y = swish(gate) * x
    z = mx.where((y > low) & (x <= 1), y, mx.maximum(-y, low))
    return nn.gelu(z) + (x // 2) % 3 - abs(gate) ** 2 + mx.clip(x, -1, None).astype(mx.float32)


@pytest.mark.parametrize("fn", [swish, polynomial, gated])
def test_a_function_is_what_it_was(fn):
    x = normal(5, 7) * 2
    arguments = [x, normal(7, seed=1)] if fn is gated else [x]
    same(zmlx.jit(fn)(*arguments), fn(*arguments))


@pytest.mark.parametrize("name", sorted(UNARY))
def test_every_function_of_one_array(name):
    fn = getattr(mx, name)
    x = mx.array([1, 2, 7]) if name == "bitwise_invert" else normal(33) * 0.5
    x = x > 0 if name == "logical_not" else x
    x = mx.abs(x) + 0.01 if name in ("log", "log2", "log10", "sqrt", "rsqrt", "log1p") else x
    x = mx.clip(x, -0.9, 0.9) if name.startswith("arc") else x
    same(zmlx.jit(lambda v: fn(v))(x), fn(x))


@pytest.mark.parametrize("name", sorted(BINARY))
def test_every_function_of_two_arrays(name):
    fn = getattr(mx, name)
    a, b = mx.array([1, 5, 12]), mx.array([1, 3, 2])
    if name.startswith("logical"):
        a, b = a > 3, b > 1
    same(zmlx.jit(lambda u, v: fn(u, v))(a, b), fn(a, b))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_every_activation(name):
    x = normal(65) * 3
    same(zmlx.jit(lambda v: getattr(nn, name)(v))(x), getattr(nn, name)(x))


@pytest.mark.parametrize("fn", [lambda a, b: ~a, lambda a, b: a ^ b, lambda a, b: a + b * a])
def test_bools_stay_bools(fn):
    a, b = mx.array([True, True, False]), mx.array([True, False, False])
    same(zmlx.jit(fn)(a, b), fn(a, b))


def test_parameters_of_activations():
    f = zmlx.jit(lambda x: nn.elu(x, 0.5) + nn.leaky_relu(x, negative_slope=0.2))
    x = normal(9)
    same(f(x), nn.elu(x, 0.5) + nn.leaky_relu(x, negative_slope=0.2))


def test_one_kernel_for_outputs_of_one_shape():
    @zmlx.jit
    def both(a, b):
        return a + 1, a * b

    a, b = normal(4, 5), normal(4, 5, seed=1)
    assert len(both.sources(a, b)) == 1
    assert isinstance(both(a, b), tuple)
    for got, want in zip(both(a, b), (a + 1, a * b), strict=True):
        same(got, want)
    # a + 1 keeps its own shape.
    for got, want in zip(both(a[0], b), (a[0] + 1, a[0] * b), strict=True):
        same(got, want)
    assert len(both.sources(a[0], b)) == 2


def test_numbers_are_inputs_and_bools_are_constants():
    @zmlx.jit
    def scaled(x, by=2.0, *, double=False):
        return x * by * 2 if double else x * by

    x = normal(9, dtype=mx.float16)
    mx.eval(scaled(x, 0.25))
    count = _ext.jit_compile_count()
    same(scaled(x, 0.5), x * 0.5)
    same(scaled(x), x * 2)
    assert _ext.jit_compile_count() == count
    same(scaled(x, 0.5, double=True), x)


def test_captured_arrays_and_other_functions():
    offset = mx.array(0.5)
    inner = zmlx.jit(swish)

    @zmlx.jit
    def outer(x, *more):
        return inner(x) * SCALE + offset + sum(more)

    x, y = normal(4, 3), normal(3, seed=1)
    same(outer(x, y, 2), swish(x) * SCALE + 0.5 + y + 2)


def test_gradients_vmap_and_compile():
    f = zmlx.jit(gated)
    x, y = normal(4, 7) + 0.1, normal(4, 7, seed=1)
    got = mx.grad(lambda *v: f(*v).sum(), argnums=(0, 1))(x, y)
    want = mx.grad(lambda *v: gated(*v).sum(), argnums=(0, 1))(x, y)
    for g, w in zip(got, want, strict=True):
        same(g, w, 1e-4)
    same(mx.vmap(f)(x, y), gated(x, y))
    same(mx.compile(f)(x, y), gated(x, y))


def normalised(x, weight, eps=1e-5):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * mx.rsqrt(mx.var(x, axis=-1, keepdims=True) + eps) * weight


def attention_weights(scores, mask):
    return mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1, precise=True)


def statistics(x):
    low, high = mx.min(x, axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    total = mx.logsumexp(x, axis=-1, keepdims=True) + mx.prod(1 + 0.1 * x, axis=-1, keepdims=True)
    return (x - low) / (high - low), total + mx.var(x, axis=-1, keepdims=True, ddof=1)


def test_reductions_of_rows():
    x, weight = normal(5, 33), normal(33, seed=1)
    same(zmlx.jit(normalised)(x, weight), normalised(x, weight))
    mask = mx.arange(33) < 20
    same(zmlx.jit(attention_weights)(x, mask), attention_weights(x, mask))
    f = zmlx.jit(statistics)
    assert len(f.sources(x)) == 1
    for got, want in zip(f(x), statistics(x), strict=True):
        same(got, want)
    got, want = (
        mx.grad(lambda v, g=g: (g(v, weight) * weight).sum())(x)
        for g in (zmlx.jit(normalised), normalised)
    )
    same(got, want, 1e-4)


def test_rows_of_one_element_among_longer_ones_are_named():
    f = zmlx.jit(lambda x, y: mx.sum(x, axis=-1, keepdims=True) * y)
    same(f(normal(4, 3), normal(4, 1)), mx.sum(normal(4, 3), axis=-1, keepdims=True) * normal(4, 1))
    with pytest.raises(TypeError, match=r"mx\.sum takes rows of one element but other arrays"):
        f(normal(4, 1), normal(4, 3))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: mx.sum(x), r"mx\.sum over axis None cannot .* only over the last, axis=-1"),
        (lambda x: mx.softmax(x, axis=0), r"mx\.softmax over axis 0 cannot"),
        (lambda x: x.max(0), r"max of an array over axis 0 cannot"),
        (lambda x: mx.mean(x, axis=-1), r"mx\.mean must keep the axis .*: keepdims=True"),
        (lambda x: mx.sort(x), r"mx\.sort is neither elementwise nor a reduction of rows"),
        (lambda x: x if x > 0 else -x, r"use mx\.where"),
        (lambda x: math.exp(x), "use MLX's functions instead of math's"),
        (lambda x: x[0], "indexing is not elementwise"),
        (lambda x: x @ x, "@ is not elementwise"),
        (lambda x: list(x), "elements of an array are not known"),
        (lambda x: {"y": x}, "expected an array or a number but got dict"),
        (lambda x: mx.exp(x, x), r"mx\.exp takes 1 argument but got 2"),
        (lambda x: nn.elu(x, beta=1), r"nn\.elu takes x and \['alpha'\]"),
    ],
)
def test_what_cannot_be_traced_is_named(fn, message):
    with pytest.raises(TypeError, match=message):
        zmlx.jit(fn)(mx.ones(3))


def test_wrong_arguments_are_named():
    with pytest.raises(AttributeError, match=r"\.shape of an array is not known while tracing"):
        zmlx.jit(lambda x: x.shape[0])(mx.ones(3))
    with pytest.raises(TypeError, match=r"\[swish\] x must be an array, .* but got list"):
        zmlx.jit(swish)([1.0])
    with pytest.raises(TypeError, match=r"\[jit\] expected a Python function but got"):
        zmlx.jit(mx.exp)
