# tests/python/test_kernels_rest.py: images, rows by index, linear layers, AdamW, and the helpers.
from __future__ import annotations

import importlib
import re

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_testing import agree, close, exact, gelu_tanh, normal, silu

import zmlx
from zmlx import profile, testing
from zmlx.kernels import image, indexing, linear
from zmlx.kernels import optimizers as steps
from zmlx.optimizers import AdamW


def test_all_modules_of_the_catalogue_can_be_imported() -> None:
    for name in zmlx.kernels.__all__:
        module = importlib.import_module(f"zmlx.kernels.{name}")
        assert getattr(zmlx.kernels, name) is module
        for function in getattr(module, "__all__", ()):
            assert callable(getattr(module, function)), function
            assert getattr(module, function).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        zmlx.kernels.nothing  # noqa: B018


def resized(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    old = x.shape[axis]
    place = (np.arange(size) + 0.5) * old / size - 0.5
    first = np.floor(place).astype(int)
    weight = (place - first).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    low, high = (np.take(x, np.clip(first + i, 0, old - 1), axis) for i in (0, 1))
    return low * (1 - weight) + high * weight


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 9, 9, 4))),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
)
def test_images_are_resized(shape, size) -> None:
    x = normal(*shape)
    want = resized(resized(exact(x), 1, size[0]), 2, size[1])
    close(image.resize_bilinear(x, size), want, 1e-4)


def test_resizing_has_gradients_and_keeps_a_size() -> None:
    x = normal(2, 5, 4, 3)
    close(image.resize_bilinear(x, (5, 4)), x)

    def doubled(x):
        rows = mx.stack([0.75 * x[:, :-1] + 0.25 * x[:, 1:], 0.25 * x[:, :-1] + 0.75 * x[:, 1:]], 2)
        rows = rows.reshape(x.shape[0], -1, *x.shape[2:])
        return mx.concatenate([x[:, :1], rows, x[:, -1:]], 1)

    agree(lambda x: image.resize_bilinear(x, (10, 4)), doubled, [x])


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 5, 7, 3), (1, 4, 4, 33)])
def test_depthwise_convolution(shape: tuple[int, ...]) -> None:
    def plain(x, w):
        padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        h, v = x.shape[1:3]
        return sum(padded[:, i : i + h, j : j + v] * w[i, j] for i in range(3) for j in range(3))

    agree(image.depthwise_conv_3x3, plain, [normal(*shape), normal(3, 3, shape[-1], seed=1)])


def test_rows_are_gathered_and_scattered() -> None:
    table, other = normal(11, 33), normal(4, 33, seed=1)
    indices = mx.array([3, 0, 10, 3])
    agree(
        lambda t, o: indexing.fused_gather_add(t, indices, o),
        lambda t, o: t[indices] + o,
        [table, other],
    )
    want = np.zeros((11, 33))
    np.add.at(want, np.array(indices), exact(other))
    close(indexing.fused_scatter_add(indices, other, (11, 33)), want)
    half = indexing.fused_scatter_add(indices, other.astype(mx.float16), (11, 33))
    assert half.dtype == mx.float32
    slope = mx.grad(lambda u: (indexing.fused_scatter_add(indices, u, (11, 33)) * table).sum())
    close(slope(other), exact(table)[np.array(indices)])


def test_scattering_outside_the_table_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="scatter_add"):
        mx.eval(indexing.fused_scatter_add(mx.array([11]), mx.ones((1, 4)), (11, 4)))
    with pytest.raises(ValueError, match=r"out_shape must be \(rows, 4\), as updates, but got"):
        indexing.fused_scatter_add(mx.array([1]), mx.ones((1, 4)), (11, 5))


def test_scattered_sums_of_half_precision_are_added_in_float32() -> None:
    ones = mx.full((4096, 1), 1.0, mx.float16)
    got = indexing.fused_scatter_add(mx.zeros(4096, mx.int32), ones, (1, 1))
    assert got.item() == 4096


@pytest.mark.parametrize(
    ("name", "activation"),
    [("fused_linear_bias_silu", silu), ("fused_linear_bias_gelu", gelu_tanh)],
)
def test_linear_layers(name: str, activation) -> None:
    inputs = [normal(5, 33), normal(17, 33, seed=1), normal(17, seed=2)]
    agree(
        getattr(linear, name),
        lambda x, w, b: activation(x @ w.T + b),
        inputs,
        gives=mx.float32,
    )
    agree(
        linear.fused_linear_rmsnorm,
        lambda x, w, g: mx.fast.rms_norm(x @ w.T, None, 0) * g,
        inputs,
        dtypes=[],
        slopes=False,
    )
    y = inputs[0] @ inputs[1].T
    want = y * mx.rsqrt((y * y).mean(-1, keepdims=True) + 1e-6) * inputs[2]
    close(linear.fused_linear_rmsnorm(*inputs), want, 1e-4)


def adamw(p, g, m, v, lr, step, b1=0.9, b2=0.999, eps=1e-8, wd=0.01):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    move = m / (1 - b1**step) / (np.sqrt(v / (1 - b2**step)) + eps)
    return p - lr * (move + wd * p), m, v


@pytest.mark.parametrize("step", [1, 2, 1000])
def test_a_step_of_adamw(step: int) -> None:
    p, g, m = (normal(3, 33, seed=i) for i in range(3))
    v = mx.square(normal(3, 33, seed=3))
    want = adamw(*(exact(a) for a in (p, g, m, v)), 0.1, step)
    for lr, count in ((0.1, step), (mx.array([0.1]), mx.array([step]))):
        got = steps.adamw_step(p, g, m, v, lr, count)
        for a, b in zip(got, want, strict=True):
            close(a, b, 1e-4)


class Model(nn.Module):
    def __init__(self, dtype: mx.Dtype):
        super().__init__()
        self.w = normal(4, 33, dtype=dtype)
        self.b = normal(33, dtype=dtype, seed=1)

    def loss(self, x: mx.array) -> mx.array:
        return (x @ self.w + self.b).square().mean()


@pytest.mark.parametrize("correction", [False, True])
def test_adamw_is_mlxs_with_one_step_an_update(correction: bool) -> None:
    models = [Model(mx.float32) for _ in range(2)]
    rate = mlx.optimizers.exponential_decay(0.05, 0.9)
    ours, theirs = (
        of(rate, betas=[0.8, 0.95], weight_decay=0.1, bias_correction=correction)
        for of in (AdamW, mlx.optimizers.AdamW)
    )
    x = normal(8, 4, seed=9)
    for count in range(1, 5):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            slopes = nn.value_and_grad(model, model.loss)(x)[1]
            optimizer.update(model, slopes)
        assert ours.step.item() == count
    close(models[0].w, models[1].w, 1e-4)
    close(models[0].b, models[1].b, 1e-4)
    close(ours.state["w"]["v"], theirs.state["w"]["v"], 1e-4)


def test_adamw_runs_the_fused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return steps.adamw_step(*args, **kwargs)

    monkeypatch.setattr(zmlx.optimizers, "adamw_step", counted)
    model, optimizer = Model(mx.bfloat16), AdamW(0.01)
    optimizer.update(model, nn.value_and_grad(model, model.loss)(mx.ones((2, 4), mx.bfloat16))[1])
    assert len(calls) == 2  # a weight and a bias
    assert model.w.dtype == mx.bfloat16
    assert optimizer.state["w"]["m"].dtype == mx.float32


def test_a_kernel_can_be_tested_against_a_reference() -> None:
    ours = zmlx.elementwise("x * sigmoid(x)")
    testing.assert_matches(ours, silu, [(3,), (2, 5)], dtypes=[mx.float32, mx.float16], atol=1e-2)
    testing.assert_matches(mx.add, lambda a, b: b + a, [(4,)], n_inputs=2)
    testing.assert_matches(lambda x: mx.log(-mx.abs(x)), lambda x: mx.log(-mx.abs(x)), [(4,)])
    testing.assert_gradient_matches(ours, silu, [(3,), (2, 5)])
    testing.assert_gradient_matches(mx.multiply, lambda a, b: b * a, [(4,)], n_inputs=2)
    with pytest.raises(AssertionError, match=r"values differ by up to 1 for shape \(3,\)"):
        testing.assert_matches(lambda x: x + 1, lambda x: x, [(3,)])
    with pytest.raises(AssertionError, match=r"shape \(\) expected for shape \(3,\)"):
        testing.assert_matches(lambda x: x, lambda x: x.sum(), [(3,)])
    with pytest.raises(AssertionError, match="1 arrays expected"):
        testing.assert_matches(lambda x: (x, x), lambda x: x, [(3,)])
    with pytest.raises(AssertionError, match="gradients differ"):
        testing.assert_gradient_matches(lambda x: x[::-1] * x, lambda x: x * x, [(3,)])


def test_a_kernel_can_be_timed() -> None:
    times = profile.time_kernel(mx.exp, mx.ones(100), warmup=1, iters=5)
    assert times["iters"] == 5
    assert 0 < times["min_us"] <= times["median_us"] <= times["max_us"]
    assert profile.time_kernel(lambda: (mx.ones(2), mx.ones(3)), iters=1)["std_us"] == 0


X = mx.zeros((2, 3))
MISTAKES = [
    (
        lambda: image.depthwise_conv_3x3(X, X),
        "[depthwise_conv_3x3] w must be (3, 3, C) but got (2, 3).",
    ),
    (
        lambda: linear.fused_linear_bias_silu(X, X, X),
        "[fused_linear_bias_silu] expected x [.., K], w [N, K] and bias [N] but got (2, 3), (2, 3)",
    ),
    (
        lambda: linear.fused_linear_rmsnorm(X, X.T, X[0]),
        "[fused_linear_rmsnorm] expected x [.., K], w [N, K] and gamma [N] but got (2, 3), (3, 2)",
    ),
    (
        lambda: steps.adamw_step(X, X, X[0], X, 0.1, 1),
        "[adamw_step] m must have shape (2, 3) but got (3,).",
    ),
    (
        lambda: indexing.fused_gather_add(X, mx.array([0.5]), X),
        "[gather_add] indices must be int32 or uint32 but got float32.",
    ),
    (lambda: profile.time_kernel(mx.exp, iters=0), "iters must be at least 1 but got 0."),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES)
def test_mistakes_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
